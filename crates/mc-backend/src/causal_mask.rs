//! What causal attention adds to its scores: a constant, made once for a device and cut to size from then on.
//! Knows nothing of padding.

use candle_core::{Device, Result, Tensor};
use std::sync::Mutex;

/// So many are kept; programs have one device, and at most two windows.
const KEPT: usize = 4;

static MASKS: Mutex<Vec<Mask>> = Mutex::new(Vec::new());

#[derive(Clone)]
struct Mask {
    window: Option<usize>,
    /// `(queries, keys)`, `f32`: its last query stands at its last key, so that smaller masks are its lower right corners.
    values: Tensor,
}

/// 0 where a query sees a key and −10³⁰ elsewhere, `(queries, keys)` in `f32`: the last query sees the last key, and
/// each the keys up to its own, at most `window` of them.
pub(crate) fn causal_mask((queries, keys): (usize, usize), window: Option<usize>, device: &Device) -> Result<Tensor> {
    let mut masks = MASKS.lock().map_err(|_| candle_core::Error::msg("the causal masks were poisoned"))?;
    let same = |mask: &Mask| mask.window == window && mask.values.device().same_device(device);
    let found = masks.iter().position(same).map(|at| masks.remove(at).values);
    let large_enough = |values: &Tensor| values.dims().iter().zip([queries, keys]).all(|(has, needs)| *has >= needs);
    let values = match found {
        Some(values) if large_enough(&values) => values,
        _ => make((queries.max(64).next_power_of_two(), keys.max(64).next_power_of_two()), window, device)?,
    };
    masks.truncate(KEPT - 1);
    masks.insert(0, Mask { window, values: values.clone() });
    let (rows, cols) = values.dims2()?;
    values.narrow(0, rows - queries, queries)?.narrow(1, cols - keys, keys)
}

fn make((queries, keys): (usize, usize), window: Option<usize>, device: &Device) -> Result<Tensor> {
    // Counted from the end, where the last query is at the last key.
    let sees = |query: usize, key: usize| key >= query && window.is_none_or(|window| key - query < window);
    // Not −∞: a row that sees nothing would be NaN.
    let row = |query| (0..keys).rev().map(move |key| if sees(query, key) { 0f32 } else { -1e30 });
    Tensor::from_iter((0..queries).rev().flat_map(row), device)?.reshape((queries, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_its_definition_whatever_was_asked_before() -> Result<()> {
        for (queries, keys) in [(1, 1), (3, 7), (100, 130), (2, 300), (5, 5)] {
            for window in [None, Some(1), Some(4), Some(70), Some(1000)] {
                let mask = causal_mask((queries, keys), window, &Device::Cpu)?.to_vec2::<f32>()?;
                assert_eq!((mask.len(), mask[0].len()), (queries, keys));
                for (i, row) in mask.iter().enumerate() {
                    let position = keys - queries + i;
                    for (j, value) in row.iter().enumerate() {
                        let sees = j <= position && window.is_none_or(|w| j + w > position);
                        assert_eq!(*value, if sees { 0.0 } else { -1e30 }, "{i} {j} {window:?}");
                    }
                }
            }
        }
        assert!(MASKS.lock().is_ok_and(|masks| masks.len() <= KEPT));
        Ok(())
    }
}
