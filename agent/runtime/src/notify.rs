//! The listener of a filter with SCMP_ACT_NOTIFY goes to who answers: the Unix stream socket `listenerPath`, with
//! the container process state of the specification as JSON and the descriptor beside it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::report::Failure;
use crate::seccomp::Listener;
use crate::sys::fds;

/// Pass it on. `state` is the container's OCI state as JSON, `pid` the process that has the filter.
pub(crate) fn send(listener: &Listener, pid: i32, state: &str, fd: OwnedFd) -> Result<(), Failure> {
    let failed = |e: io::Error| {
        let detail = format!("linux.seccomp.listenerPath: {e}");
        Failure::refused("seccomp listener", &listener.path, &detail)
    };
    let state: serde_json::Value = serde_json::from_str(state).map_err(|e| failed(e.into()))?;
    let mut message = serde_json::json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "state": state,
    });
    if let Some(metadata) = &listener.metadata {
        message["metadata"] = metadata.as_str().into();
    }
    let socket = UnixStream::connect(&listener.path).map_err(failed)?;
    let text = message.to_string();
    fds::send(socket.as_fd(), text.as_bytes(), &[fd.as_fd()]).map_err(|e| failed(e.into()))
}
