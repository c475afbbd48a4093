//! Shadows: a server sends copies of requests that it answered to the shadows that a file names, and a shadow generates the same
//! responses again and compares them. Copies are signed, so that nobody else can feed a shadow. A canary that is compared does the same
//! beside the requests of its clients, which come first.
//!
//! The server that answers clients loses nothing by it: copies wait in a bounded queue, which drops them first, for a thread of their
//! own, which never touches the engine.

mod compare;
mod mirror;
mod receive;
#[cfg(test)]
mod tests;

pub(super) use self::{
    mirror::{Mirror, Recording},
    receive::{Beside, Shadow, receive},
};
