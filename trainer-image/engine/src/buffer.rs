//! Memory that a step needs, kept from step to step, at addresses that whole cache lines and matrix tiles begin at. Pure.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use super::number::Bf16;

/// Bytes that a buffer's address is a multiple of: a cache line, and a row of a tile.
const ALIGNMENT: usize = 64;

/// Numbers in a row at an aligned address. It grows when it must and never shrinks.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    data: Vec<T>,
    start: usize,
    length: usize,
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Self { data: Vec::new(), start: 0, length: 0 }
    }
}

impl<T: Copy + Default> Buffer<T> {
    /// Makes it `length` long. What it holds then is whatever it held, or zeros.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.data.len() < self.start + length || self.data.is_empty() {
            let slack = ALIGNMENT / size_of::<T>();
            // The old one goes first, so that both are never there together.
            self.data = Vec::new();
            self.data = vec![T::default(); length + slack];
            self.start = self.data.as_ptr().align_offset(ALIGNMENT).min(slack);
        }
        self.length = length;
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.start..self.start + self.length]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.length]
    }
}

/// Kinds of numbers that a thread keeps buffers of.
pub(crate) trait Kept: Copy + Default + 'static {
    /// Runs `work` on the buffers of this thread that are not in use.
    fn with_free<R>(work: impl FnOnce(&mut Vec<Buffer<Self>>) -> R) -> R;
}

macro_rules! kept {
    ($($number:ty),*) => {$(
        impl Kept for $number {
            fn with_free<R>(work: impl FnOnce(&mut Vec<Buffer<Self>>) -> R) -> R {
                thread_local! {
                    static FREE: RefCell<Vec<Buffer<$number>>> = const { RefCell::new(Vec::new()) };
                }
                FREE.with_borrow_mut(work)
            }
        }
    )*};
}
kept!(f32, Bf16);

/// A buffer whose contents are whatever its last user left: write before you read. It goes back to its thread when it is
/// dropped.
pub(crate) struct Scratch<T: Kept>(Buffer<T>);

/// A buffer of `length` numbers for a while.
pub(crate) fn scratch<T: Kept>(length: usize) -> Scratch<T> {
    // The last one back is the first one out, so the same places get the same buffers step by step.
    let mut buffer = T::with_free(Vec::pop).unwrap_or_default();
    buffer.resize(length);
    Scratch(buffer)
}

impl<T: Kept> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Kept> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Kept> Drop for Scratch<T> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        T::with_free(|free| free.push(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_kept() {
        let mut buffer = Buffer::<f32>::default();
        for length in [1, 17, 4096, 5] {
            buffer.resize(length);
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(ALIGNMENT)), (length, 0));
        }
        let address = {
            let scratch = scratch::<f32>(1000);
            scratch.as_ptr()
        };
        assert_eq!(scratch::<f32>(900).as_ptr(), address);
    }
}
