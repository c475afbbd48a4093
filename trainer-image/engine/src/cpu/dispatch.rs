//! Macros that compile a kernel for every instruction set and run the one for this processor.

/// Defines a function that runs a kernel compiled for this processor's instruction set: `dispatched!(name<'a>(argument: &'a
/// [f32]) = kernel)`, where `kernel` is generic over `pulp::Simd` and takes it first.
#[macro_export]
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis $name:ident$([const $width:ident])?<$life:lifetime>(
        $($argument:ident: $type:ty),* $(,)?
    ) = $kernel:expr) => {
        $(#[$doc])*
        $vis fn $name<$life $(, const $width: usize)?>($($argument: $type),*) {
            struct Work<$life $(, const $width: usize)?> {
                $($argument: $type),*
            }
            impl<$life $(, const $width: usize)?> pulp::WithSimd for Work<$life $(, $width)?> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, simd: S) {
                    $kernel(simd, $(self.$argument),*);
                }
            }
            $crate::arch().dispatch(Work::<$life $(, $width)?> { $($argument),* });
        }
    };
}
pub(crate) use dispatched;

/// As [`dispatched!`], for a kernel that is also generic over the type of activations.
macro_rules! dispatched_for {
    ($(#[$doc:meta])* $vis:vis $name:ident<$life:lifetime, $number:ident>(
        $($argument:ident: $type:ty),* $(,)?
    ) = $kernel:ident) => {
        $(#[$doc])*
        $vis fn $name<$life, $number: $crate::cpu::matrix::Dtype>($($argument: $type),*) {
            struct Work<$life, $number> {
                $($argument: $type),*
            }
            impl<$life, $number: $crate::cpu::matrix::Dtype> pulp::WithSimd for Work<$life, $number> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, simd: S) {
                    $kernel::<S, $number>(simd, $(self.$argument),*);
                }
            }
            $crate::arch().dispatch(Work::<$life, $number> { $($argument),* });
        }
    };
}

/// `each!(simd, out; a, b => expression)` replaces every element of `out` with the expression over `out`, `a` and `b`, each
/// a register of elements. (A closure need not be inlined, and would then be compiled for the baseline instruction set.)
macro_rules! each {
    ($simd:ident: $s:ident, $out:ident; $($input:ident),* => $value:expr) => {{
        $(let $input = &$input[..$out.len()];)*
        let (whole, rest) = $s::as_mut_simd_f32s($out);
        let count = whole.len();
        {
            $(let $input = &$s::as_simd_f32s($input).0[..count];)*
            for index in 0..count {
                let $out = whole[index];
                $(let $input = $input[index];)*
                let _ = $out;
                whole[index] = $value;
            }
        }
        if !rest.is_empty() {
            let $out = $simd.partial_load_f32s(rest);
            $(let $input = $simd.partial_load_f32s($s::as_simd_f32s($input).1);)*
            let _ = $out;
            $simd.partial_store_f32s(rest, $value);
        }
    }};
}
pub(crate) use {dispatched_for, each};
