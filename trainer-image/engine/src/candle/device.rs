//! Where a candle backend computes, and in which type.

use candle_core::{DType, Device as CandleDevice, Result, Tensor};

use crate::{Device, EngineError, Layout, Precision, peak};

/// A device and the type of activations on it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The device.
    pub(crate) device: CandleDevice,
    /// The type of activations and of the weights that are multiplied.
    pub(crate) dtype: DType,
}

/// Opens a device for activations of `precision`.
///
/// # Errors
/// The device does not exist or is not usable, this program was built without it, or it does not multiply in `precision`.
pub(crate) fn open(device: Device, precision: Precision) -> std::result::Result<Place, EngineError> {
    let place = match device {
        Device::Cpu => CandleDevice::Cpu,
        Device::Cuda if !cfg!(feature = "cuda") => return Err(EngineError::WithoutCuda),
        Device::Cuda => CandleDevice::new_cuda(0).map_err(|error| EngineError::Cuda(Box::new(error)))?,
    };
    let dtype = match (precision, device) {
        (Precision::F32, _) => DType::F32,
        (Precision::Bf16, Device::Cuda) => DType::BF16,
        (Precision::Bf16, Device::Cpu) => return Err(EngineError::Precision),
        (Precision::F16, Device::Cuda) => DType::F16,
        (Precision::F16, Device::Cpu) => return Err(EngineError::Half),
    };
    Ok(Place { device: place, dtype })
}

impl Place {
    /// Returns the name of the code path for the records of a run.
    pub(super) fn path(&self) -> &'static str {
        match (self.device.is_cuda(), self.dtype) {
            (false, _) => "candle-f32",
            (true, DType::BF16) => "candle-cuda-bf16",
            (true, DType::F16) => "candle-cuda-f16",
            (true, _) => "candle-cuda-f32",
        }
    }

    /// Measures the floating-point operations in a second of a large product.
    pub(super) fn peak_flops(&self) -> Result<f64> {
        let factor = Tensor::ones((peak::SIZE, peak::SIZE), self.dtype, &self.device)?;
        let mut computed = Ok(());
        let fastest = peak::fastest(|| {
            if computed.is_ok() {
                computed = factor.matmul(&factor).and_then(|_| self.device.synchronize());
            }
        });
        computed.map(|()| fastest)
    }

    /// Copies numbers to the device as `f32`.
    pub(super) fn tensor(&self, numbers: &[f32], shape: &[usize]) -> Result<Tensor> {
        Tensor::from_slice(numbers, shape, &self.device)
    }

    /// Copies indices to the device.
    pub(super) fn indices(&self, indices: &[u32]) -> Result<Tensor> {
        Tensor::from_slice(indices, indices.len(), &self.device)
    }

    /// Copies all tensors of a layout to the device, as `f32`.
    pub(super) fn tensors(&self, layout: &Layout, parameters: &[f32]) -> Result<Vec<Tensor>> {
        let tensors = layout.tensors().iter();
        tensors.map(|tensor| self.tensor(&parameters[tensor.range.clone()], &tensor.shape)).collect()
    }
}
