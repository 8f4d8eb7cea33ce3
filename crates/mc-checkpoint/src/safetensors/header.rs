//! Reads what a safetensors header or a shard index says, and believes it only as far as the bytes bear it out.

use crate::{Error, Result, model_dir::stays_inside};
use safetensors::tensor::{Dtype, Metadata};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// Larger ones are refused by every reader of the format.
const MAX_HEADER: u64 = 100_000_000;

pub(crate) struct Header {
    pub(crate) tensors: HashMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
}

pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// In the file; in bounds, and as long as dtype and shape say.
    pub(crate) range: Range<usize>,
}

impl Header {
    pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let invalid = |what: String| Error::invalid(file, what);
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(invalid(format!("{} bytes are too few for a safetensors file", bytes.len())));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER {
            return Err(invalid(format!("a header of {length} bytes is over the limit of {MAX_HEADER}")));
        }
        let Some((json, data)) = rest.split_at_checked(length as usize) else {
            return Err(invalid(format!("a header of {length} bytes does not fit into {}", rest.len())));
        };
        // Checks that ranges follow each other without gap or overlap, each as long as its dtype and shape say.
        let parsed: Metadata = serde_json::from_slice(json).map_err(|e| invalid(format!("header: {e}")))?;
        // The crate's own reader adds these without a check for overflow, so the whole is compared here.
        if parsed.data_len() != data.len() {
            let (found, expected) = (data.len(), parsed.data_len());
            return Err(invalid(format!("{found} bytes of tensors, the header describes {expected}")));
        }
        // Of a name that is there twice, the map keeps one.
        if count_keys(json).map_err(Error::json(file))? != parsed.tensors().len() {
            return Err(invalid("header: a tensor's name is there twice".into()));
        }
        let start = bytes.len() - data.len();
        let entry = |info: &safetensors::tensor::TensorInfo| Entry {
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: start + info.data_offsets.0..start + info.data_offsets.1,
        };
        let tensors = parsed.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect();
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { tensors, metadata })
    }
}

/// The shards of an index, sorted, with the tensors that each holds.
pub(crate) fn shards(file: &str, text: &[u8]) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(text).map_err(Error::json(file))?;
    if index.weight_map.is_empty() {
        return Err(Error::invalid(file, "`weight_map` is empty"));
    }
    let mut shards: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map {
        if !stays_inside(&shard) {
            return Err(Error::invalid(file, format!("shard `{shard}` of tensor `{tensor}` is outside the directory")));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    Ok(shards)
}

fn count_keys(json: &[u8]) -> serde_json::Result<usize> {
    struct Count;
    impl<'de> Visitor<'de> for Count {
        type Value = usize;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
                count += usize::from(key != "__metadata__");
            }
            Ok(count)
        }
    }
    serde_json::Deserializer::from_slice(json).deserialize_map(Count)
}
