//! Aligned buffers that are kept between steps. Pure.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use super::bf16::Bf16;

/// Alignment of a buffer in bytes: a cache line, and a row of a tile.
const ALIGNMENT: usize = 64;

/// An aligned buffer. It grows on demand and never shrinks.
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
    /// Sets the length. The contents are unspecified.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.data.len() < self.start + length || self.data.is_empty() {
            let slack = ALIGNMENT / size_of::<T>();
            // Free the old one first, so that both never coexist.
            self.data = Vec::new();
            self.data = vec![T::default(); length + slack];
            self.start = self.data.as_ptr().align_offset(ALIGNMENT).min(slack);
        }
        self.length = length;
    }

    /// Returns the bytes held.
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

/// Types that each thread keeps a pool of buffers for.
pub(crate) trait Pooled: Copy + Default + 'static {
    /// Runs `work` on this thread's unused buffers.
    fn with_free<R>(work: impl FnOnce(&mut Vec<Buffer<Self>>) -> R) -> R;
}

macro_rules! pooled {
    ($($number:ty),*) => {$(
        impl Pooled for $number {
            fn with_free<R>(work: impl FnOnce(&mut Vec<Buffer<Self>>) -> R) -> R {
                thread_local! {
                    static FREE: RefCell<Vec<Buffer<$number>>> = const { RefCell::new(Vec::new()) };
                }
                FREE.with_borrow_mut(work)
            }
        }
    )*};
}
pooled!(f32, u32, Bf16);

/// A pooled buffer with unspecified contents: write before reading. It returns to its thread's pool on drop.
pub(crate) struct Scratch<T: Pooled>(Buffer<T>);

/// Takes a buffer of `length` elements from this thread's pool.
pub(crate) fn scratch<T: Pooled>(length: usize) -> Scratch<T> {
    // Last in, first out: the same call sites get the same buffers in every step.
    let mut buffer = T::with_free(Vec::pop).unwrap_or_default();
    buffer.resize(length);
    Scratch(buffer)
}

impl<T: Pooled> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pooled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Pooled> Drop for Scratch<T> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        T::with_free(|free| free.push(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
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
