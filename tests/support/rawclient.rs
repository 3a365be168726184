//! A client that says exactly the bytes it is told to, and shows exactly what came back.
//!
//! Blocking, with a time limit on every read and write, so that a test can hang only for a bounded
//! time. Absent on purpose: any reaction to what nodes say, except during the login.

use super::message::{self, ErrorFields, Message};
use super::scram::Scram;
use super::tlsclient::TlsWire;
use md5::{Digest, Md5};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a test waits for bytes before it calls the peer hung.
pub const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest message believed; a longer one is reported as garbage.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

static NONCES: AtomicU64 = AtomicU64::new(1);

/// Who logs in, where, how.
#[derive(Clone, Debug)]
pub struct Login {
    /// Role.
    pub user: String,
    /// Password for whatever method is asked.
    pub password: String,
    /// Database.
    pub database: String,
    /// Version field of the startup packet.
    pub protocol: u32,
    /// More startup parameters.
    pub parameters: Vec<(String, String)>,
}

impl Login {
    /// A login with protocol 3.0 and no further parameters.
    pub fn new(user: &str, password: &str, database: &str) -> Self {
        let [user, password, database] = [user, password, database].map(str::to_owned);
        Self { user, password, database, protocol: message::PROTOCOL_3_0, parameters: Vec::new() }
    }

    /// With a startup parameter.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The startup packet.
    pub fn packet(&self) -> Vec<u8> {
        let mut parameters = vec![("user", self.user.as_str()), ("database", self.database.as_str())];
        parameters.extend(self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        message::startup(self.protocol, &parameters)
    }
}

/// Why no message could be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The peer closed or reset the connection.
    Closed,
    /// Nothing came within [`READ_TIMEOUT`]: the peer hangs.
    TimedOut,
    /// Bytes that are no message.
    Garbage(String),
    /// The peer refused with an error.
    Refused(ErrorFields),
}

/// What is below a client.
enum Wire {
    Tcp(TcpStream),
    Tls(Box<TlsWire>),
}

impl Wire {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// One connection.
pub struct RawClient {
    stream: Wire,
    /// Everything received during the login.
    pub greeting: Vec<Message>,
    /// Pid and secret of the `BackendKeyData`.
    pub cancel_key: (u32, Vec<u8>),
}

impl RawClient {
    /// A connection on which nothing has been said.
    pub fn tcp(port: u16) -> Self {
        Self::tcp_from(Ipv4Addr::LOCALHOST, port)
    }

    /// The same, coming from this loopback address.
    pub fn tcp_from(source: Ipv4Addr, port: u16) -> Self {
        Self::speaking(connect_from(source, port).expect("the port accepts connections"))
    }

    fn speaking(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a connected socket");
        stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a connected socket");
        stream.set_write_timeout(Some(READ_TIMEOUT)).expect("a connected socket");
        Self { stream: Wire::Tcp(stream), greeting: Vec::new(), cancel_key: (0, Vec::new()) }
    }

    /// Over a TLS connection on which nothing else has been said.
    pub fn over(tls: TlsWire) -> Self {
        Self { stream: Wire::Tls(Box::new(tls)), greeting: Vec::new(), cancel_key: (0, Vec::new()) }
    }

    /// Logs in at an address of any network; a refused connection is `Gone::Closed`.
    pub fn login_at(address: SocketAddr, login: &Login) -> Result<Self, Gone> {
        let stream = TcpStream::connect_timeout(&address, READ_TIMEOUT).map_err(|error| gone(&error))?;
        let mut client = Self::speaking(stream);
        client.send(&login.packet())?;
        client.authenticate(login)?;
        Ok(client)
    }

    /// Logs in; everything up to the first `ReadyForQuery` is in `greeting`.
    pub fn login(port: u16, login: &Login) -> Result<Self, Gone> {
        let mut client = Self::tcp(port);
        client.send(&login.packet())?;
        client.authenticate(login)?;
        Ok(client)
    }

    /// The login after the startup packet.
    pub fn authenticate(&mut self, login: &Login) -> Result<(), Gone> {
        let mut scram: Option<(Scram, String)> = None;
        loop {
            let message = self.read()?;
            self.greeting.push(message.clone());
            match message.tag {
                b'R' => self.answer_authentication(login, &message.body, &mut scram)?,
                b'E' => return Err(Gone::Refused(message.fields())),
                b'K' => self.cancel_key = message.cancel_key(),
                b'S' | b'N' | b'v' => {}
                b'Z' => return Ok(()),
                tag => return Err(Gone::Garbage(format!("{} during the login", char::from(tag)))),
            }
        }
    }

    fn answer_authentication(
        &mut self,
        login: &Login,
        body: &[u8],
        scram: &mut Option<(Scram, String)>,
    ) -> Result<(), Gone> {
        let bad = |what: &str| Gone::Garbage(format!("authentication: {what}"));
        let (kind, rest) = body.split_first_chunk::<4>().ok_or_else(|| bad("short"))?;
        match u32::from_be_bytes(*kind) {
            0 => Ok(()),
            3 => self.send(&message::frame(b'p', &[login.password.as_bytes(), &[0]].concat())),
            5 => {
                let inner = hex_md5(&[login.password.as_bytes(), login.user.as_bytes()].concat());
                let outer = hex_md5(&[inner.as_bytes(), rest].concat());
                self.send(&message::frame(b'p', format!("md5{outer}\0").as_bytes()))
            }
            10 => {
                if !rest.split(|byte| *byte == 0).any(|name| name == b"SCRAM-SHA-256") {
                    return Err(bad("no SCRAM-SHA-256 offered"));
                }
                let number = NONCES.fetch_add(1, Ordering::Relaxed);
                let exchange = Scram::new(&login.password, &format!("rawclient+nonce/{number:020}"));
                let first = exchange.first();
                *scram = Some((exchange, String::new()));
                let length = u32::try_from(first.len()).map_err(|_| bad("long"))?.to_be_bytes();
                self.send(&message::frame(b'p', &[b"SCRAM-SHA-256\0".as_slice(), &length, first.as_bytes()].concat()))
            }
            11 => {
                let (exchange, expected) = scram.as_mut().ok_or_else(|| bad("SCRAM was not begun"))?;
                let server_first = String::from_utf8_lossy(rest).into_owned();
                let last = exchange.answer(&server_first).ok_or_else(|| bad(&server_first))?;
                *expected = format!("v={}", last.signature);
                self.send(&message::frame(b'p', last.message.as_bytes()))
            }
            12 => match scram {
                Some((_, expected)) if expected.as_bytes() == rest => Ok(()),
                _ => Err(bad("the server's signature is wrong")),
            },
            kind => Err(bad(&format!("kind {kind}"))),
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).map_err(|error| gone(&error))
    }

    /// Reads one message.
    pub fn read(&mut self) -> Result<Message, Gone> {
        let mut head = [0_u8; 5];
        self.stream.read_exact(&mut head).map_err(|error| gone(&error))?;
        let [tag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) || !tag.is_ascii_alphanumeric() {
            return Err(Gone::Garbage(format!("tag {tag:#x}, length {length}")));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).map_err(|error| gone(&error))?;
        Ok(Message { tag, body })
    }

    /// Reads one byte that is no message (the answer to an `SSLRequest`).
    pub fn read_byte(&mut self) -> Result<u8, Gone> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).map_err(|error| gone(&error))?;
        Ok(byte[0])
    }

    /// Reads until the peer closes; what came before that.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>, Gone> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(bytes),
                Ok(count) => bytes.extend(&chunk[..count]),
                Err(error) if gone(&error) == Gone::Closed => return Ok(bytes),
                Err(error) => return Err(gone(&error)),
            }
        }
    }

    /// Reads up to and including the first message with this tag.
    pub fn read_until(&mut self, tag: u8) -> Result<Vec<Message>, Gone> {
        let mut messages = Vec::new();
        loop {
            let message = self.read()?;
            let last = message.tag == tag;
            messages.push(message);
            if last {
                return Ok(messages);
            }
        }
    }

    /// Runs a simple query; an error in the answer is `Gone::Refused`.
    pub fn simple(&mut self, sql: &str) -> Result<Answer, Gone> {
        self.send(&message::query(sql))?;
        self.answer()
    }

    /// Reads an answer up to `ReadyForQuery`; an error in it is `Gone::Refused`.
    pub fn answer(&mut self) -> Result<Answer, Gone> {
        let mut answer = Answer::default();
        let mut refused = None;
        loop {
            let message = match self.read() {
                Ok(message) => message,
                // A FATAL error says more than the end of the connection after it.
                Err(Gone::Closed) => return Err(refused.unwrap_or(Gone::Closed)),
                Err(gone) => return Err(gone),
            };
            match message.tag {
                b'D' => answer.rows.push(message.row_text()),
                b'C' => answer.tags.push(message.text()),
                b'E' => refused = Some(Gone::Refused(message.fields())),
                b'Z' => return refused.map_or(Ok(answer), Err),
                _ => {}
            }
        }
    }

    /// The first value of the first row of a simple query; fails the test on anything else.
    pub fn value(&mut self, sql: &str) -> String {
        let answer = self.simple(sql).unwrap_or_else(|gone| panic!("{sql}: {gone:?}"));
        let row = answer.rows.first().unwrap_or_else(|| panic!("{sql}: no row"));
        row[0].clone().unwrap_or_else(|| "NULL".to_owned())
    }

    /// Changes the time limit of reads.
    pub fn read_timeout(&self, limit: Duration) {
        self.stream.tcp().set_read_timeout(Some(limit)).expect("a connected socket");
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        self.stream.tcp()
    }

    /// Ends both directions at once.
    pub fn hang_up(&self) {
        let _ = self.stream.tcp().shutdown(Shutdown::Both);
    }
}

/// The useful part of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Rows as texts.
    pub rows: Vec<Vec<Option<String>>>,
    /// Command tags.
    pub tags: Vec<String>,
}

fn connect_from(source: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    Ok(socket.into())
}

fn gone(error: &std::io::Error) -> Gone {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Gone::TimedOut,
        _ => Gone::Closed,
    }
}

fn hex_md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
