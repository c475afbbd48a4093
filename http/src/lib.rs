//! Serves HTTP/1.1 with bounds: on open connections, on the time that headers, bodies and TLS handshakes may take, and on the
//! lifetime of a connection. Both programs use it for every port. Sends a request on to another server, for proxies.
//!
//! Unknown paths and methods are answered in JSON, as every other error of the APIs.

mod body;
mod fallback;
mod forward;
mod server;

pub use fallback::{with_fallbacks, with_fallbacks_as};
pub use forward::{ForwardError, forward};
pub use server::{Limits, Server};
