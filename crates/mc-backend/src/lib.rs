//! Devices, frozen weights and differentiable fused ops.
