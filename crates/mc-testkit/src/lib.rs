//! What the tests of this workspace share: gradient checks, tolerances, random tensors, golden files, devices, warnings.
//!
//! Everything here fails by panicking with a message that says which element is wrong: it runs in tests only.
//! It knows nothing of models or adapters.

mod close;
mod devices;
mod dispatches;
pub mod golden;
mod gradcheck;
mod random;
mod warnings;

pub use close::{Tolerance, assert_close, cosine, max_abs_diff};
pub use devices::{devices, run_on_each_device};
pub use dispatches::{CountingAllocator, count_dispatches};
pub use gradcheck::{gradcheck, gradcheck_with};
pub use random::{random, random_range};
pub use warnings::Warnings;
