//! The daemon's end of the socket: connections, lines in and out, and every bound on them.
//!
//! An epoll of its own, which the daemon's loop waits on as one descriptor ([`Server::fd`]). Nothing
//! here blocks. A client has one request at work at a time; what it has sent ahead waits.

use super::message::{self, Request};
use super::{MOST_REQUEST, SOCKET};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, umask};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections at once. One more takes the place of the one that has been idle longest.
const MOST_CLIENTS: usize = 64;

/// Lines that wait for a client that follows events; what is beyond is counted and said.
const MOST_WAITING: usize = 256 << 10;

/// A client that takes nothing for so long while something waits for it is dropped; one that follows
/// events has longer, as lines that find no room are all it loses.
const PATIENCE: Duration = Duration::from_secs(10);
const FOLLOWERS_PATIENCE: Duration = Duration::from_secs(300);

/// Requests taken in one turn, so that nobody keeps the loop from its other work.
const MOST_A_TURN: usize = 128;

const LISTENER: u64 = u64::MAX;

/// Names a connection. Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(u64);

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    /// A request, to be answered with [`Server::answer`].
    Request(ClientId, Request),
    /// The client hung up, or was dropped.
    Gone(ClientId),
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A request of it is at work: no other is taken.
    busy: bool,
    /// It follows events; lines that found no room.
    follows: Option<u64>,
    /// The rest of `output` is all it gets.
    closing: bool,
    /// It has shut down its side: no more requests come.
    eof: bool,
    /// When it last sent or took something.
    active: Instant,
    /// What epoll watches for; with nothing it is not in it, as a hang-up would wake us all the time.
    watched: EpollFlags,
}

/// The socket and its clients.
pub struct Server {
    epoll: Epoll,
    listener: UnixListener,
    path: PathBuf,
    clients: HashMap<u64, Client>,
    next: u64,
    /// Requests may be waiting in buffers that epoll knows nothing of.
    unread: bool,
}

/// Why there is no socket. Complete for a person.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody listens there.
    #[error(
        "another daemon answers at {}: stop it first, or give this one a --run-dir of its own",
        .0.display()
    )]
    Taken(PathBuf),
    /// What is there is no socket.
    #[error("{} is in the way and is no socket: move it away", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("cannot listen at {}: {why}{}", path.display(), way_out(why))]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its answer.
        why: io::Error,
    },
}

fn way_out(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; run it as root, with a run directory that is on a writable file system"
        }
        io::ErrorKind::InvalidInput => "; name a run directory with a shorter path",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the run directory's file system is full: free some of it"
        }
        _ => "",
    }
}

impl Client {
    /// When it is dropped if it goes on taking nothing.
    fn drop_at(&self) -> Option<Instant> {
        let patience = if self.follows.is_some() { FOLLOWERS_PATIENCE } else { PATIENCE };
        (!self.output.is_empty()).then_some(self.active + patience)
    }
}

impl Server {
    /// Listens in `run_dir`, which must be this daemon's alone (a lock says so). A socket that nobody
    /// listens on is removed.
    pub fn listen(run_dir: &Path) -> Result<Server, ServeError> {
        let path = run_dir.join(SOCKET);
        let refused = |why| ServeError::Refused { path: path.clone(), why };
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NoSocket(path)),
            Ok(_) => match UnixStream::connect(&path) {
                Ok(_) => return Err(ServeError::Taken(path)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    log::info!("{}: nobody listens on it any more, removed", path.display());
                    std::fs::remove_file(&path).map_err(refused)?;
                }
                Err(error) => return Err(refused(error)),
            },
        }
        // Never open to others, not even for an instant.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(&path);
        umask(before);
        let listener = listener.map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| refused(io::Error::from(errno)))?;
        epoll
            .add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
            .map_err(|errno| refused(io::Error::from(errno)))?;
        Ok(Server { epoll, listener, path, clients: HashMap::new(), next: 0, unread: false })
    }

    /// Readable when [`Server::turn`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// When to turn again even if nothing is readable: to drop who takes nothing, to go on with what is
    /// buffered.
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.unread {
            return Some(Duration::ZERO);
        }
        let waiting = self.clients.values().filter_map(Client::drop_at);
        waiting.map(|at| at.saturating_duration_since(now)).min()
    }

    /// Takes what came, sends what waits.
    pub fn turn(&mut self, incoming: &mut Vec<Incoming>) {
        let mut events = [EpollEvent::empty(); 64];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..ready] {
            match event.data() {
                LISTENER => self.accept(incoming),
                number => {
                    let gone = event.events().contains(EpollFlags::EPOLLHUP);
                    if gone && self.clients.get(&number).is_some_and(|c| c.follows.is_some()) {
                        self.drop_client(number, incoming);
                    }
                    if event.events().intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR) {
                        self.send(number, incoming);
                    }
                    if event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP) {
                        self.receive(number, incoming);
                    }
                }
            }
        }
        self.take_requests(incoming);
        let now = Instant::now();
        let stuck: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.drop_at().is_some_and(|at| at <= now))
            .map(|(number, _)| *number)
            .collect();
        for number in stuck {
            log::warn!("a client takes nothing: dropped");
            self.drop_client(number, incoming);
        }
    }

    /// Answers the request of a client that is at work.
    pub fn answer(&mut self, client: ClientId, line: &[u8], incoming: &mut Vec<Incoming>) {
        let Some(at) = self.clients.get_mut(&client.0) else { return };
        at.busy = false;
        at.output.extend_from_slice(line);
        self.unread = true;
        self.send(client.0, incoming);
    }

    /// From now on, lines of [`Server::publish`] go to this client too.
    pub fn follow(&mut self, client: ClientId) {
        if let Some(client) = self.clients.get_mut(&client.0) {
            client.follows = Some(0);
        }
    }

    /// Ends the connection once all is sent.
    pub fn close(&mut self, client: ClientId, incoming: &mut Vec<Incoming>) {
        if let Some(at) = self.clients.get_mut(&client.0) {
            at.closing = true;
            self.send(client.0, incoming);
        }
    }

    /// Sends a line to all who follow events. Who has too much waiting misses it, and is told how many
    /// it missed once there is room.
    pub fn publish(&mut self, line: &[u8], incoming: &mut Vec<Incoming>) {
        let numbers: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.follows.is_some())
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let Some(client) = self.clients.get_mut(&number) else { continue };
            let Some(missed) = &mut client.follows else { continue };
            if client.output.len() + line.len() > MOST_WAITING {
                *missed += 1;
                continue;
            }
            if *missed > 0 {
                client.output.extend_from_slice(&missed_line(*missed));
                *missed = 0;
            }
            client.output.extend_from_slice(line);
            self.send(number, incoming);
        }
    }

    fn accept(&mut self, incoming: &mut Vec<Incoming>) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::warn!("cannot accept a client: {error}"),
            };
            // Mode 0600 lets nobody else in; a descriptor that somebody passed on might.
            let own = nix::unistd::geteuid().as_raw();
            match getsockopt(&stream, PeerCredentials) {
                Ok(peer) if peer.uid() == 0 || peer.uid() == own => {}
                Ok(peer) => {
                    log::warn!("a client of uid {} (pid {}) is refused", peer.uid(), peer.pid());
                    continue;
                }
                Err(errno) => {
                    log::warn!("a client without credentials is refused: {errno}");
                    continue;
                }
            }
            if self.clients.len() >= MOST_CLIENTS && !self.make_room(incoming) {
                let full = format!("{MOST_CLIENTS} clients are connected already: try again later");
                let _ = (&stream).write_all(&message::refused(&full));
                continue;
            }
            let number = self.next;
            self.next += 1;
            let watching = stream.set_nonblocking(true).map_err(|_| Errno::EIO).and_then(|()| {
                self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))
            });
            if let Err(errno) = watching {
                log::warn!("cannot listen to a client: {errno}");
                continue;
            }
            self.clients.insert(
                number,
                Client {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    busy: false,
                    follows: None,
                    closing: false,
                    eof: false,
                    active: Instant::now(),
                    watched: EpollFlags::EPOLLIN,
                },
            );
        }
    }

    /// Drops the client that has been idle longest, if any is idle.
    fn make_room(&mut self, incoming: &mut Vec<Incoming>) -> bool {
        let idle = self.clients.iter().filter(|(_, c)| !c.busy && c.follows.is_none());
        let Some((&number, _)) = idle.min_by_key(|(_, client)| client.active) else { return false };
        self.drop_client(number, incoming);
        true
    }

    fn receive(&mut self, number: u64, incoming: &mut Vec<Incoming>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let mut buffer = [0; 16 << 10];
        // No more than one request is ahead of the one at work.
        while client.input.len() < MOST_REQUEST {
            match client.stream.read(&mut buffer) {
                Ok(0) => {
                    client.eof = true;
                    break;
                }
                Ok(n) => {
                    client.active = Instant::now();
                    if !client.closing {
                        client.input.extend_from_slice(&buffer[..n]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.drop_client(number, incoming),
            }
        }
        self.unread = true;
        self.settle(number, incoming);
    }

    fn take_requests(&mut self, incoming: &mut Vec<Incoming>) {
        if !std::mem::take(&mut self.unread) {
            return;
        }
        let mut numbers: Vec<u64> = self.clients.keys().copied().collect();
        numbers.sort_unstable();
        let mut taken = 0;
        for number in numbers {
            while self.take_request(number, incoming) {
                taken += 1;
                if taken >= MOST_A_TURN {
                    self.unread = true;
                    return;
                }
            }
            self.settle(number, incoming);
        }
    }

    /// Takes one line of a client, if a whole one is there and nothing of it is at work.
    fn take_request(&mut self, number: u64, incoming: &mut Vec<Incoming>) -> bool {
        let Some(client) = self.clients.get_mut(&number) else { return false };
        if client.busy || client.closing || !client.output.is_empty() {
            return false;
        }
        let end = client.input.iter().position(|byte| *byte == b'\n');
        let Some(end) = end.filter(|end| *end < MOST_REQUEST) else {
            if client.input.len() >= MOST_REQUEST {
                let why = format!("a request is longer than {MOST_REQUEST} bytes");
                client.output = message::refused(&why);
                client.closing = true;
                client.input = Vec::new();
                self.send(number, incoming);
            }
            return false;
        };
        let parsed = message::parse(&client.input[..end]);
        client.input.drain(..=end);
        if client.input.is_empty() {
            client.input = Vec::new();
        }
        match parsed {
            Ok(request) => {
                client.busy = true;
                incoming.push(Incoming::Request(ClientId(number), request));
            }
            Err(bad) => {
                client.output = message::refused(&bad.to_string());
                self.send(number, incoming);
            }
        }
        true
    }

    fn send(&mut self, number: u64, incoming: &mut Vec<Incoming>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let mut sent = 0;
        while sent < client.output.len() {
            match client.stream.write(&client.output[sent..]) {
                Ok(n) if n > 0 => {
                    sent += n;
                    client.active = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => return self.drop_client(number, incoming),
            }
        }
        if sent == client.output.len() {
            client.output = Vec::new();
            self.unread |= client.input.contains(&b'\n');
        } else {
            client.output.drain(..sent);
        }
        self.settle(number, incoming);
    }

    /// Ends a connection that is done, and tells epoll what is of interest of one that is not.
    fn settle(&mut self, number: u64, incoming: &mut Vec<Incoming>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let idle = client.output.is_empty() && !client.busy;
        let whole_line = client.input.contains(&b'\n') && !client.closing;
        let ended = client.closing || (client.eof && !whole_line && client.follows.is_none());
        if ended && idle {
            return self.drop_client(number, incoming);
        }
        let mut wanted = EpollFlags::empty();
        if !client.eof && client.input.len() < MOST_REQUEST {
            wanted |= EpollFlags::EPOLLIN;
        }
        if !client.output.is_empty() {
            wanted |= EpollFlags::EPOLLOUT;
        }
        if wanted == client.watched {
            return;
        }
        let before = std::mem::replace(&mut client.watched, wanted);
        let told = if wanted.is_empty() {
            self.epoll.delete(&client.stream)
        } else if before.is_empty() {
            self.epoll.add(&client.stream, EpollEvent::new(wanted, number))
        } else {
            self.epoll.modify(&client.stream, &mut EpollEvent::new(wanted, number))
        };
        if told.is_err() {
            self.drop_client(number, incoming);
        }
    }

    fn drop_client(&mut self, number: u64, incoming: &mut Vec<Incoming>) {
        if let Some(client) = self.clients.remove(&number) {
            // Closing takes it out of the epoll.
            drop(client);
            incoming.push(Incoming::Gone(ClientId(number)));
        }
    }
}

fn missed_line(missed: u64) -> Vec<u8> {
    message::line(&message::EventLine {
        schema: message::SCHEMA,
        at_ms: crate::daemon::unix_ms(),
        event: "dropped".into(),
        id: None,
        generation: None,
        message: format!("{missed} events were dropped: this client was too slow"),
        detail: serde_json::json!({ "dropped": missed }),
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
