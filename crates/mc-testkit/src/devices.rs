//! The devices that a test runs on. Knows no `cfg`: candle says at run time what it was built with.

use candle_core::Device;
use std::fmt::Debug;

/// The CPU and, in a build with the feature `metal` or `cuda`, that device.
///
/// # Panics
/// When the build has such a feature and the machine no such device: a test that was asked for must not be skipped.
#[track_caller]
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    if candle_core::utils::metal_is_available() {
        devices.push(Device::new_metal(0).unwrap_or_else(|error| panic!("feature `metal`: {error}")));
    }
    if candle_core::utils::cuda_is_available() {
        devices.push(Device::new_cuda(0).unwrap_or_else(|error| panic!("feature `cuda`: {error}")));
    }
    devices
}

/// Runs `body` on each of [`devices`]; this is what [`for_each_device!`](crate::for_each_device) calls.
///
/// # Panics
/// When `body` panics or returns an error; the message names the device.
#[track_caller]
pub fn run_on_each_device<E: Debug>(body: impl Fn(&Device) -> Result<(), E>) {
    for device in devices() {
        // Shown by the test runner only when the test fails.
        body(&device).unwrap_or_else(|error| panic!("on {:?}: {error:?}", device.location()));
    }
}

/// Makes a test of each named `fn(&Device) -> Result<(), E>`: it runs on every device of [`devices`](crate::devices()).
///
/// ```
/// use candle_core::{Device, Result, Tensor};
///
/// fn ones_sum_to_their_count(device: &Device) -> Result<()> {
///     let ones = Tensor::ones(7, candle_core::DType::F32, device)?;
///     assert_eq!(ones.sum_all()?.to_scalar::<f32>()?, 7.0);
///     Ok(())
/// }
/// mc_testkit::for_each_device!(ones_sum_to_their_count);
/// ```
#[macro_export]
macro_rules! for_each_device {
    ($($body:ident),+ $(,)?) => {$(
        // A module and a function may share a name, so the report shows the body's own.
        mod $body {
            #[test]
            fn on_each_device() {
                $crate::run_on_each_device(super::$body);
            }
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;
    use candle_core::{DType, Result};

    fn device_keeps_values(device: &Device) -> Result<()> {
        let x = random(1, (2, 3), DType::F32);
        assert!(crate::max_abs_diff(&x.to_device(device)?, &x) == 0.0);
        Ok(())
    }
    crate::for_each_device!(device_keeps_values);

    #[test]
    #[should_panic(expected = "on Cpu: \"no\"")]
    fn an_error_names_its_device() {
        run_on_each_device(|_| Err("no"));
    }
}
