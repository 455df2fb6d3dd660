//! The daemon, for commands that ask it.

use super::error::{FAILED, Failure};
use cgshim::api::client::{Client, ClientError, run_dir};
use cgshim::api::message::{Listed, One, Request, View};
use std::path::Path;
use std::time::Duration;

/// No answer but a reclaim's takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::new(FAILED, error.to_string())
    }
}

/// A connection; a failure with the way out where there is no daemon.
pub(crate) fn connect(given: Option<&Path>) -> Result<Client, Failure> {
    Ok(Client::connect(&run_dir(given), PATIENCE)?)
}

/// A connection, or none where there is no daemon.
pub(crate) fn connect_if_running(given: Option<&Path>) -> Option<Client> {
    Client::connect(&run_dir(given), PATIENCE).ok()
}

/// A container by its id, or the only one whose id begins so.
pub(crate) fn container(client: &mut Client, id: &str) -> Result<View, Failure> {
    Ok(client.ask::<One>(Request::Stat { id: id.to_owned() })?.container)
}

/// Why `text` names nothing: neither a cgroup, nor a container by what the daemon said, if there is one.
pub(crate) fn nobody(text: &str, container: Option<Failure>, group: Failure) -> Failure {
    // A path is no container's name; and a name that several groups have is known.
    if text.contains('/') || group.code != FAILED {
        return group;
    }
    let message = match container {
        Some(container) => container.message,
        None => "no daemon answers whose container it might be ('cgctl ps')".into(),
    };
    Failure { message: format!("{message}; {}", group.message), ..group }
}

/// The containers.
pub(crate) fn containers(client: &mut Client, ended: bool) -> Result<Vec<View>, Failure> {
    Ok(client.ask::<Listed>(Request::List { ended })?.containers)
}
