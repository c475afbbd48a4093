//! Tests: what the test servers of this module have in common: they read a request, hand it over, and close the connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

/// A request.
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) body: Vec<u8>,
    /// The lines of headers.
    pub(super) lines: Vec<String>,
}

impl Request {
    /// Reads a request, or returns `None` if the connection is closed before its headers end.
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let first = lines.remove(0);
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let mut request = Self { method, target, body: Vec::new(), lines };
        request.body = vec![0; request.header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut request.body).unwrap();
        Some(request)
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        let mut headers = self.lines.iter().filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    }
}

/// An answer. Without one, the connection is closed.
pub(super) struct Answer {
    status: u16,
    /// Lines of headers, each with its end.
    head: String,
    /// How many bytes the answer promises.
    length: usize,
    body: Vec<u8>,
}

/// Listens on a free port of the loopback interface, and answers each connection in a thread of its own. Returns the port.
pub(super) fn serve(answer: impl Fn(u16, Request) -> Option<Answer> + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let Some(Answer { status, head, length, body }) =
                    Request::read(&stream).and_then(|it| answer(port, it))
                else {
                    return;
                };
                let head =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{head}\r\n");
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            });
        }
    });
    port
}

/// Returns an answer with a whole body.
pub(super) fn reply(status: u16, head: &str, body: &[u8]) -> Option<Answer> {
    cut(status, head, body.len(), body)
}

/// Returns an answer that promises `length` bytes, and may have fewer.
#[allow(clippy::unnecessary_wraps, reason = "it is what a server returns for a request")]
pub(super) fn cut(status: u16, head: &str, length: usize, body: &[u8]) -> Option<Answer> {
    Some(Answer { status, head: head.to_owned(), length, body: body.to_vec() })
}
