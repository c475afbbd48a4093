//! Initialization of the parameters. Pure.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{Layout, ModelConfig, Tensor};

/// Returns initial parameters in the order of `layout`: normal with standard deviation 1/√width, output projections also
/// divided by √(2 · layers), norm weights 1, biases 0. Each matrix has a random stream of its own, derived from `seed` and
/// its name.
pub fn initial(config: &ModelConfig, layout: &Layout, seed: u64) -> Vec<f32> {
    let mut parameters = vec![0.0; layout.size()];
    let mut rest = parameters.as_mut_slice();
    let cut = |tensor| (tensor, rest.split_off_mut(..Tensor::count(tensor)).unwrap_or_default());
    let parts: Vec<(&Tensor, &mut [f32])> = layout.tensors().iter().map(cut).collect();
    parts.into_par_iter().for_each(|(tensor, numbers)| fill(config, tensor, seed, numbers));
    parameters
}

fn fill(config: &ModelConfig, tensor: &Tensor, seed: u64, numbers: &mut [f32]) {
    if tensor.shape.len() == 1 {
        numbers.fill(if tensor.name.rsplit('.').next() == Some("bias") { 0.0 } else { 1.0 });
        return;
    }
    let mut deviation = 1.0 / (config.hidden_size as f32).sqrt();
    if ["o_proj", "down_proj", "c_proj"].iter().any(|part| tensor.name.contains(part)) {
        deviation /= ((2 * config.num_hidden_layers) as f32).sqrt();
    }
    let mut hasher = Sha256::new();
    hasher.update(b"codex weights 1\0");
    hasher.update(&tensor.name);
    hasher.update([0]);
    hasher.update(seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(hasher.finalize().into());
    for number in numbers {
        let normal: f32 = StandardNormal.sample(&mut rng);
        *number = deviation * normal;
    }
}
