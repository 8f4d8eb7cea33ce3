//! Choosing and describing a device. Adds to candle's own `Device`; no wrapper type, so candle code and ours mix.

use candle_core::{DType, Device, Result};

/// Which device runs, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// `cpu`, `metal` or `cuda`.
    pub kind: &'static str,
    /// Which of several; 0 on the CPU.
    pub index: usize,
    /// What a person would call it, with the number of threads or the instruction set where that matters.
    pub description: String,
}

/// What candle's `Device` lacks: a choice with a fallback that says what it chose.
///
/// ```
/// use candle_core::Device;
/// use mc_backend::DeviceExt;
/// let device = Device::new_with_fallback(0);
/// println!("running on {}", device.info().description);
/// ```
pub trait DeviceExt: Sized {
    /// The CPU.
    fn new_cpu() -> Self;
    /// Metal, else CUDA, else the CPU: the first that this build has and this machine offers, at `index`.
    ///
    /// A device that is there but cannot be opened is reported through `tracing` as a warning.
    fn new_with_fallback(index: usize) -> Self;
    /// The device that a name means: `auto`, `cpu`, `metal`, `metal:1`, `cuda`, `cuda:0`.
    ///
    /// # Errors
    /// If the name is none of these, or this build or machine does not have the device.
    fn parse(name: &str) -> Result<Self>;
    /// Which device this is.
    fn info(&self) -> DeviceInfo;
    /// The dtype activations have here when nobody asks for one: `f32` on the CPU, `bf16` elsewhere.
    fn default_dtype(&self) -> DType;
}

impl DeviceExt for Device {
    fn new_cpu() -> Self {
        Device::Cpu
    }

    fn new_with_fallback(index: usize) -> Self {
        let metal = candle_core::utils::metal_is_available().then(|| Device::new_metal(index));
        let cuda = candle_core::utils::cuda_is_available().then(|| Device::new_cuda(index));
        for device in [metal, cuda].into_iter().flatten() {
            match device {
                Ok(device) => return device,
                Err(e) => tracing::warn!("a GPU is there but cannot be opened, trying the next device: {e}"),
            }
        }
        Device::Cpu
    }

    fn parse(name: &str) -> Result<Self> {
        let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
        let unknown =
            || candle_core::Error::msg(format!("unknown device `{name}`, expected auto, cpu, metal[:i] or cuda[:i]"));
        let index: usize = index.parse().map_err(|_| unknown())?;
        match kind {
            "auto" => Ok(Self::new_with_fallback(index)),
            "cpu" if index == 0 => Ok(Device::Cpu),
            "metal" if candle_core::utils::metal_is_available() => Device::new_metal(index),
            "cuda" if candle_core::utils::cuda_is_available() => Device::new_cuda(index),
            "metal" | "cuda" => candle_core::bail!("this binary was built without {kind}"),
            _ => Err(unknown()),
        }
    }

    fn info(&self) -> DeviceInfo {
        match self.location() {
            candle_core::DeviceLocation::Cpu => DeviceInfo {
                kind: "cpu",
                index: 0,
                description: format!("CPU, {} threads, {}", rayon::current_num_threads(), instruction_set()),
            },
            candle_core::DeviceLocation::Metal { gpu_id } => {
                DeviceInfo { kind: "metal", index: gpu_id, description: format!("Metal GPU {gpu_id}") }
            }
            candle_core::DeviceLocation::Cuda { gpu_id } => {
                DeviceInfo { kind: "cuda", index: gpu_id, description: format!("CUDA GPU {gpu_id}") }
            }
        }
    }

    fn default_dtype(&self) -> DType {
        if self.is_cpu() { DType::F32 } else { DType::BF16 }
    }
}

/// The vector instructions that the kernels use here, by the name people know.
fn instruction_set() -> String {
    let arch = format!("{:?}", pulp::Arch::new());
    match arch.split('(').next().unwrap_or_default() {
        "V3" => "avx2".into(),
        "V4" => "avx512".into(),
        other => other.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_refused() {
        assert!(matches!(Device::parse("cpu"), Ok(Device::Cpu)));
        assert!(Device::parse("auto").is_ok());
        for bad in ["gpu", "cpu:1", "metal:x", "", "cuda:-1"] {
            let message = Device::parse(bad).expect_err(bad).to_string();
            assert!(message.contains("expected auto, cpu") || message.contains("built without"), "{message}");
        }
        assert!(Device::Cpu.info().description.contains("threads"));
    }
}
