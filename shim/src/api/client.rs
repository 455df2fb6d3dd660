//! The other end: for `cgctl`, and whoever else asks the daemon.

use super::message::{Envelope, Reply, Request, SCHEMA, line};
use super::{RUN_DIR, SOCKET};
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest answer that is read: a list of as many containers as a daemon takes.
const MOST_ANSWER: u64 = 64 << 20;

/// Why the daemon could not be asked, or what it answered. Complete for a person.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon answers at {}: {why}; start it with 'systemctl start cgshimd' (or 'cgshimd'), or \
         name its run directory with --run-dir", path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What came of trying.
        why: io::Error,
    },
    /// The connection failed.
    #[error("the daemon at {} does not answer: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        why: io::Error,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// The run directory: what was given, else `CGSHIM_RUN_DIR`, else [`RUN_DIR`].
pub fn run_dir(given: Option<&Path>) -> PathBuf {
    match given {
        Some(path) => path.to_path_buf(),
        None => std::env::var_os("CGSHIM_RUN_DIR").map_or_else(|| RUN_DIR.into(), PathBuf::from),
    }
}

impl Client {
    /// Connects to the daemon of this run directory; every answer may take `patience`.
    pub fn connect(run_dir: &Path, patience: Duration) -> Result<Client, ClientError> {
        let path = run_dir.join(SOCKET);
        let stream = UnixStream::connect(&path)
            .map_err(|why| ClientError::NotRunning { path: path.clone(), why })?;
        let client = Client { path, stream: BufReader::new(stream) };
        client.patience(Some(patience))?;
        Ok(client)
    }

    /// How long an answer may take; `None` for as long as it does.
    pub fn patience(&self, patience: Option<Duration>) -> Result<(), ClientError> {
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(patience)
            .and_then(|()| stream.set_write_timeout(patience))
            .map_err(|why| self.broken(why))
    }

    /// Asks, and waits for the answer.
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        let reply: Reply<T> = self.exchange(request)?;
        match reply {
            Reply { ok: true, body: Some(body), .. } => Ok(body),
            Reply { ok: true, .. } => Err(self.odd("an answer without content")),
            Reply { error, .. } => Err(ClientError::Refused(
                error.unwrap_or_else(|| "refused, without a reason".into()),
            )),
        }
    }

    /// The next line of a stream; `None` at its end.
    pub fn next_line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let Some(line) = self.read()? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|error| self.odd(&error.to_string()))
    }

    fn exchange<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        let request = line(&Envelope { schema: SCHEMA, request });
        self.stream.get_mut().write_all(&request).map_err(|why| self.broken(why))?;
        self.next_line()?.ok_or_else(|| self.odd("it hung up"))
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MOST_ANSWER).read_until(b'\n', &mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            Err(why) => Err(self.broken(why)),
        }
    }

    fn broken(&self, why: io::Error) -> ClientError {
        ClientError::Broken { path: self.path.clone(), why }
    }

    fn odd(&self, why: &str) -> ClientError {
        self.broken(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()))
    }
}
