//! Buffers that a thread keeps between kernels, so that they are not filled with zeros over and over. Pure.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer whose contents are whatever its last user left: write before you read. It goes back when it is dropped.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    length: usize,
}

/// A buffer of `length` numbers.
pub(crate) fn scratch(length: usize) -> Scratch {
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    Scratch { buffer, length }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.length]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.length]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        FREE.with_borrow_mut(|free| free.push(std::mem::take(&mut self.buffer)));
    }
}
