//! Metrics over HTTP/1.1: `GET /metrics` on a loopback address, one answer a connection.
//!
//! Invariants: only loopback addresses are bound; a request has at most [`MAX_REQUEST`] bytes and
//! [`PATIENCE`] to come in; nothing but the request line is looked at.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Input;
use super::metrics::register;

/// Longest request.
const MAX_REQUEST: usize = 8192;
/// So long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counter of requests.
pub(crate) struct Metrics {
    pub requests: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let opts = Opts::new("berth_metrics_requests_total", "HTTP requests, by status.");
        Ok(Metrics {
            requests: register(registry, IntCounterVec::new(opts, &["status"]))?,
        })
    }
}

/// Binds and serves; the address that was bound.
///
/// # Errors
/// The kernel's, or an address that is not loopback.
pub(crate) async fn serve(address: SocketAddr, queue: UnboundedSender<Input>) -> io::Result<SocketAddr> {
    if !address.ip().is_loopback() {
        let text = format!("{address} is no loopback address: metrics are served on loopback only");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let queue = queue.clone();
                    tokio::spawn(async move {
                        if let Ok(Err(error)) = timeout(PATIENCE, answer(stream, queue)).await {
                            tracing::debug!(%error, "metrics request");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "metrics socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(bound)
}

async fn answer(mut stream: TcpStream, queue: UnboundedSender<Input>) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut bytes = [0; 1024];
        let n = stream.read(&mut bytes).await?;
        if n == 0 || request.len() > MAX_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&bytes[..n]);
    }
    let status = status(&request);
    let (reply, text) = oneshot::channel();
    let _ = queue.send(Input::Metrics { status, reply });
    let text = text.await.unwrap_or_default();
    let body = if status == "200 OK" {
        text
    } else {
        format!("{status}\n").into_bytes()
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}

/// The status line's end for a request.
fn status(request: &[u8]) -> &'static str {
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(b"GET"), Some(path), Some(version)) if version.starts_with(b"HTTP/1.") => {
            match path.split(|b| *b == b'?').next() {
                Some(b"/metrics") => "200 OK",
                _ => "404 Not Found",
            }
        }
        (Some(_), Some(_), Some(version)) if version.starts_with(b"HTTP/") => "405 Method Not Allowed",
        _ => "400 Bad Request",
    }
}

#[cfg(test)]
mod tests {
    use super::status;

    #[test]
    fn only_get_metrics_is_answered() {
        for (request, want) in [
            (&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], "200 OK"),
            (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200 OK"),
            (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            (b"\xff\xff\r\n\r\n", "400 Bad Request"),
            (b"", "400 Bad Request"),
        ] {
            assert_eq!(status(request), want);
        }
    }
}
