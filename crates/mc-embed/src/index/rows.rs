//! The file with the rows: vectors in the form that the index keeps, and a record for each. Knows no manifest.
//!
//! A safetensors file, mapped into memory, with the tensors
//!
//! | tensor | dtype, shape | what |
//! |---|---|---|
//! | `vectors` | F32 or F16 (rows, dimensions) | of length 1, or 0 where the text had none |
//! | `codes`, `scales` | U8 (rows, dimensions), F32 (rows) | of int8 alone: `vectors ≈ scales · (codes − 128)` |
//! | `records` | U8 (bytes) | the records, one after the other |
//! | `record_ends` | I64 (rows) | where each record ends |
//! | `notes` | U8 (bytes) | what the index's owner keeps about all rows |

use super::{Error, Result, VectorDtype};
use bytemuck::cast_slice;
use candle_core::DType;
use half::f16;
use mc_backend::search::{Hit, Vectors, nearest, to_codes};
use mc_checkpoint::{SafeTensors, WeightSource, stream_safetensors};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The rows of an index, where they lie in their file.
pub(super) struct Rows {
    path: PathBuf,
    file: SafeTensors,
    count: usize,
    dimensions: usize,
    dtype: VectorDtype,
}

/// Where a row of a new file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A row of the old file.
    Old(usize),
    /// One of the new rows.
    New(usize),
}

/// A row of a new file; a row of a file that was renamed has the vector that it had, and another record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) vector: Source,
    pub(crate) record: Source,
}

impl Row {
    /// Both from the same place.
    pub(crate) fn of(source: Source) -> Self {
        Self { vector: source, record: source }
    }
}

/// What rows are made of beside the old ones: vectors of length 1, and records.
pub(crate) struct NewRows<'a> {
    pub(crate) vectors: &'a [f32],
    pub(crate) records: &'a [String],
}

impl Rows {
    /// Opens the file and checks that it holds what the manifest says.
    pub(super) fn open(path: PathBuf, count: usize, dimensions: usize, dtype: VectorDtype) -> Result<Self> {
        if !path.exists() {
            return Err(Error::invalid(&path, "no such file, and the index says there is"));
        }
        let this = Self { file: SafeTensors::open(&path)?, path, count, dimensions, dtype };
        this.vectors()?;
        let ends = this.record_ends()?;
        let (end, records) = (ends.last().copied().unwrap_or(0), this.text("records")?.len());
        if usize::try_from(end) != Ok(records) {
            return Err(this.invalid(format!("records end at {end}, expected {records}")));
        }
        this.notes()?;
        Ok(this)
    }

    /// The `k` rows with the largest dot products with `query`. Of bytes, more candidates than that are looked at again in
    /// the precision of their vectors.
    pub(super) fn search(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        let vectors = self.vectors()?;
        let first = |found: Vec<Vec<Hit>>| found.into_iter().next().unwrap_or_default();
        let Some(codes) = self.codes()? else {
            return Ok(first(nearest(vectors, self.dimensions, query, k)?));
        };
        let candidates = if k == 0 { 0 } else { k.saturating_mul(4).saturating_add(16) };
        let mut candidates: Vec<_> =
            first(nearest(codes, self.dimensions, query, candidates)?).into_iter().map(|hit| hit.row).collect();
        // In the order of rows, so that the lower one of two equal ones wins.
        candidates.sort_unstable();
        let Vectors::F16(vectors) = vectors else { return Ok(vec![]) };
        let d = self.dimensions;
        let gathered: Vec<f16> = candidates.iter().flat_map(|row| &vectors[row * d..(row + 1) * d]).copied().collect();
        let mut hits = first(nearest(Vectors::F16(&gathered), d, query, k)?);
        for hit in &mut hits {
            hit.row = candidates[hit.row];
        }
        Ok(hits)
    }

    /// The record of a row; empty beyond the last.
    pub(super) fn record(&self, row: usize) -> Result<&str> {
        std::str::from_utf8(self.record_bytes(row)?).map_err(|e| self.invalid(format!("record {row}: {e}")))
    }

    /// What the index's owner keeps about all rows.
    pub(super) fn notes(&self) -> Result<&[u8]> {
        self.text("notes")
    }

    /// The CRC-32 of all that is in the file. It reads all of it.
    pub(super) fn checksum(&self) -> Result<u32> {
        let mut checksum = crc32fast::Hasher::new();
        let mut tensors = self.file.names();
        tensors.sort_unstable();
        for name in &tensors {
            let dtype = match name.as_str() {
                "record_ends" => DType::I64,
                "scales" => DType::F32,
                "vectors" if self.dtype == VectorDtype::F32 => DType::F32,
                "vectors" => DType::F16,
                _ => DType::U8,
            };
            checksum.update(self.file.bytes(name, &self.file.shape(name).unwrap_or_default(), dtype)?);
        }
        Ok(checksum.finalize())
    }

    fn vectors(&self) -> Result<Vectors<'_>> {
        let shape = [self.count, self.dimensions];
        Ok(match self.dtype {
            VectorDtype::F32 => Vectors::F32(self.numbers("vectors", &shape, DType::F32)?),
            VectorDtype::F16 | VectorDtype::Int8 => Vectors::F16(self.numbers("vectors", &shape, DType::F16)?),
        })
    }

    fn codes(&self) -> Result<Option<Vectors<'_>>> {
        if self.dtype != VectorDtype::Int8 {
            return Ok(None);
        }
        let codes = self.file.bytes("codes", &[self.count, self.dimensions], DType::U8)?;
        Ok(Some(Vectors::Int8 { codes, scales: self.numbers("scales", &[self.count], DType::F32)? }))
    }

    fn record_ends(&self) -> Result<&[i64]> {
        self.numbers("record_ends", &[self.count], DType::I64)
    }

    fn record_bytes(&self, row: usize) -> Result<&[u8]> {
        let ends = self.record_ends()?;
        let end = ends.get(row).or(ends.last()).copied().unwrap_or(0);
        let start = row.checked_sub(1).map_or(0, |before| ends.get(before).copied().unwrap_or(end));
        let range = usize::try_from(start).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(0);
        let wrong = || self.invalid(format!("record {row} is {start}..{end}, which is out of order"));
        self.text("records")?.get(range).ok_or_else(wrong)
    }

    fn text(&self, name: &str) -> Result<&[u8]> {
        let shape = self.file.shape(name).unwrap_or_default();
        Ok(self.file.bytes(name, &shape, DType::U8)?)
    }

    fn numbers<T: bytemuck::Pod>(&self, name: &str, shape: &[usize], dtype: DType) -> Result<&[T]> {
        let bytes = self.file.bytes(name, shape, dtype)?;
        bytemuck::try_cast_slice(bytes).map_err(|e| self.invalid(format!("tensor `{name}`: {e}")))
    }

    fn invalid(&self, what: String) -> Error {
        Error::invalid(&self.path, what)
    }
}

/// Writes rows of `old` and new ones, in the order of `plan`, as a file of their own.
pub(super) fn write(
    path: &Path,
    (dimensions, dtype): (usize, VectorDtype),
    plan: &[Row],
    old: Option<&Rows>,
    new: &NewRows,
    notes: &[u8],
) -> Result<()> {
    let (d, n) = (dimensions, plan.len());
    let old_vectors = old.map(Rows::vectors).transpose()?;
    let old_codes = old.map(Rows::codes).transpose()?.flatten();
    let new_vector = |i: usize| &new.vectors[i * d..(i + 1) * d];
    let record = |row: &Row| match (row.record, old) {
        (Source::New(i), _) => Ok(new.records.get(i).map_or(&[][..], String::as_bytes)),
        (Source::Old(row), Some(old)) => old.record_bytes(row),
        (Source::Old(_), None) => Ok(&[][..]),
    };
    let mut ends = Vec::with_capacity(n);
    let mut end = 0usize;
    for row in plan {
        end += record(row)?.len();
        ends.push(end as i64);
    }
    let stored = if dtype == VectorDtype::F32 { DType::F32 } else { DType::F16 };
    let mut tensors = vec![
        ("notes", DType::U8, vec![notes.len()]),
        ("record_ends", DType::I64, vec![n]),
        ("records", DType::U8, vec![end]),
        ("vectors", stored, vec![n, d]),
    ];
    if dtype == VectorDtype::Int8 {
        tensors.extend([("codes", DType::U8, vec![n, d]), ("scales", DType::F32, vec![n])]);
    }
    let mut codes = vec![0; d];
    let metadata = BTreeMap::from([("format", "metal-candle index")]);
    stream_safetensors(path, tensors, metadata, |name, out| {
        match name {
            "notes" => return out.write_all(notes),
            "record_ends" => return out.write_all(cast_slice(&ends)),
            _ => {}
        }
        for row in plan {
            match (name, row.vector) {
                ("records", _) => out.write_all(record(row).map_err(io::Error::other)?)?,
                ("vectors", Source::Old(row)) => match old_vectors {
                    Some(Vectors::F32(x)) => out.write_all(cast_slice(&x[row * d..(row + 1) * d]))?,
                    Some(Vectors::F16(x)) => out.write_all(cast_slice(&x[row * d..(row + 1) * d]))?,
                    _ => {}
                },
                ("vectors", Source::New(i)) if dtype == VectorDtype::F32 => {
                    out.write_all(cast_slice(new_vector(i)))?;
                }
                ("vectors", Source::New(i)) => {
                    let halves: Vec<f16> = new_vector(i).iter().map(|x| f16::from_f32(*x)).collect();
                    out.write_all(cast_slice(&halves))?;
                }
                (_, Source::Old(row)) => {
                    if let Some(Vectors::Int8 { codes, scales }) = old_codes {
                        let bytes = if name == "codes" {
                            &codes[row * d..(row + 1) * d]
                        } else {
                            cast_slice(&scales[row..=row])
                        };
                        out.write_all(bytes)?;
                    }
                }
                (_, Source::New(i)) => {
                    let scale = to_codes(new_vector(i), &mut codes);
                    out.write_all(if name == "codes" { &codes } else { cast_slice(std::slice::from_ref(&scale)) })?;
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}
