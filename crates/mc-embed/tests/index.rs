//! Indexes on disk: what is put in is found, whatever happens to it, and what is damaged is said.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use candle_core::{DType, Device, Tensor};
use mc_embed::index::{Error, Hit, IndexConfig, VectorDtype, VectorIndex, top_k};
use proptest::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const DTYPES: [VectorDtype; 3] = [VectorDtype::F32, VectorDtype::F16, VectorDtype::Int8];

/// What a score may be off by: the rounding of stored numbers.
fn error_of(dtype: VectorDtype) -> f64 {
    if dtype == VectorDtype::F32 { 1e-6 } else { 1e-3 }
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

struct Place {
    dir: TempDir,
    d: usize,
}

impl Place {
    fn new(d: usize) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), d }
    }
    fn path(&self) -> PathBuf {
        self.dir.path().join("index")
    }
    fn create(&self, vectors: VectorDtype) -> VectorIndex {
        let config = IndexConfig { model: "m".into(), dimensions: self.d, vectors, ..IndexConfig::default() };
        VectorIndex::create(self.path(), config).unwrap()
    }
}

fn records(name: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{name} {i} é")).collect()
}

/// Cosines in `f64` of rows that are kept in order.
fn cosines(rows: &[f32], query: &[f32]) -> Vec<f64> {
    let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let dot = |x: &[f32]| x.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    rows.chunks_exact(query.len()).map(|row| dot(row) / (norm(row) * norm(query)).max(1e-30)).collect()
}

fn check(index: &VectorIndex, rows: &[f32], names: &[String], query: &[f32]) {
    let expected = cosines(rows, query);
    let n = expected.len();
    assert_eq!((index.len(), index.is_empty()), (n, n == 0));
    for (row, name) in names.iter().enumerate() {
        assert_eq!(index.record(row).unwrap(), name);
    }
    let error = error_of(index.config().vectors);
    let hits = index.search(query, n + 3).unwrap();
    assert_eq!(hits.len(), n);
    assert!(hits.is_sorted_by(|a, b| a.score > b.score || a.score == b.score && a.row < b.row));
    for Hit { row, score } in &hits {
        assert!((f64::from(*score) - expected[*row]).abs() < error, "row {row}: {score}, expected {}", expected[*row]);
    }
    let mut best = expected.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    for (hit, best) in index.search(query, 5).unwrap().iter().zip(best) {
        assert!((f64::from(hit.score) - best).abs() < error, "{hit:?}, the best is {best}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Rows are appended, replaced and removed, and after each step the open index and one opened anew hold the same.
    #[test]
    fn an_index_is_what_was_done_to_it(
        kind in 0usize..3, d in 1usize..70, steps in prop::collection::vec((0u8..3, 0usize..40), 1..6), seed: u64,
    ) {
        let place = Place::new(d);
        let mut index = place.create(DTYPES[kind]);
        let (mut rows, mut names): (Vec<f32>, Vec<String>) = (vec![], vec![]);
        for (i, (what, n)) in steps.into_iter().enumerate() {
            let picked: Vec<usize> = (0..names.len()).filter(|row| row % 3 == n % 3).collect();
            match what {
                0 => {
                    let (new, new_names) = (noise(n * d, seed ^ i as u64), records(&i.to_string(), n));
                    index.append(&new, &new_names).unwrap();
                    rows.extend(new);
                    names.extend(new_names);
                }
                1 => {
                    let (new, new_names) = (noise(picked.len() * d, !seed ^ i as u64), records("new", picked.len()));
                    index.replace(&picked, &new, &new_names).unwrap();
                    for (j, row) in picked.iter().enumerate() {
                        rows[row * d..(row + 1) * d].copy_from_slice(&new[j * d..(j + 1) * d]);
                        names[*row].clone_from(&new_names[j]);
                    }
                }
                _ => {
                    index.remove(&picked).unwrap();
                    for row in picked.into_iter().rev() {
                        rows.drain(row * d..(row + 1) * d);
                        names.remove(row);
                    }
                }
            }
            let query = noise(d, seed);
            check(&index, &rows, &names, &query);
            check(&VectorIndex::open(place.path()).unwrap(), &rows, &names, &query);
        }
    }
}

/// Of thousands of rows the candidates by bytes hold the best ones.
#[test]
fn bytes_find_what_numbers_find() {
    let (d, n) = (96, 5000);
    let rows = noise(n * d, 3);
    let places = DTYPES.map(|dtype| {
        let place = Place::new(d);
        place.create(dtype).append(&rows, &[]).unwrap();
        place
    });
    let [exact, halves, bytes] = places.each_ref().map(|place| VectorIndex::open(place.path()).unwrap());
    for seed in 0..20 {
        let query = noise(d, 100 + seed);
        let rows_of = |index: &VectorIndex| -> Vec<usize> {
            index.search(&query, 10).unwrap().into_iter().map(|hit| hit.row).collect()
        };
        assert_eq!(rows_of(&halves), rows_of(&bytes), "query {seed}");
        let near = rows_of(&exact).iter().filter(|row| rows_of(&bytes).contains(row)).count();
        assert!(near >= 9, "query {seed}: {near} of 10");
    }
}

#[test]
fn a_query_of_nothing_and_vectors_of_nothing() {
    let place = Place::new(3);
    let mut index = place.create(VectorDtype::Int8);
    assert!(index.search(&[1.0, 0.0, 0.0], 5).unwrap().is_empty());
    index.append(&[0.0, 0.0, 0.0, 0.0, 2.0, 0.0], &[]).unwrap();
    let hits = index.search(&[0.0, 1.0, 0.0], 5).unwrap();
    assert_eq!(hits.iter().map(|h| (h.row, h.score)).collect::<Vec<_>>(), [(1, 1.0), (0, 0.0)]);
    assert_eq!(index.search(&[0.0; 3], 1).unwrap()[0].score, 0.0);
    assert!(index.search(&[0.0, 1.0, 0.0], 0).unwrap().is_empty());
    assert_eq!(index.record(0).unwrap(), "");
}

/// Bytes score the second row higher; in f16 both are 0.6, and of equal ones the lower row comes first.
#[test]
fn rows_that_bytes_tell_apart_and_numbers_do_not_are_in_their_order() {
    let place = Place::new(3);
    let mut index = place.create(VectorDtype::Int8);
    index.append(&[0.6, 0.8, 0.0, 0.6, 0.5, 0.6245], &[]).unwrap();
    let hits = index.search(&[1.0, 0.0, 0.0], 2).unwrap();
    assert_eq!(hits.iter().map(|hit| hit.row).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(hits[0].score, hits[1].score);
}

/// Of a matrix in memory: by dot product, in both dtypes, and a row without a finite one is an error as it is for an index.
#[test]
fn a_matrix_is_ranked_by_dot_product() {
    let rows = Tensor::new(&[[1f32, 0.0], [0.6, 0.8], [9.0, 0.0]], &Device::Cpu).unwrap();
    let query = Tensor::new(&[1f32, 0.0], &Device::Cpu).unwrap();
    let of = |rows: &Tensor| top_k(rows, &query, 2).map_err(|e| e.to_string());
    for dtype in [DType::F32, DType::F16] {
        let found = of(&rows.to_dtype(dtype).unwrap()).unwrap();
        assert_eq!(found, [Hit { row: 2, score: 9.0 }, Hit { row: 0, score: 1.0 }]);
    }
    assert_eq!(top_k(&rows, &query.to_dtype(DType::F16).unwrap(), 1).unwrap()[0].row, 2);
    let says = |rows: &Tensor, what: &str| assert!(of(rows).unwrap_err().starts_with(what), "{:?}", of(rows));
    says(&rows.to_dtype(DType::F64).unwrap(), "the matrix is F64 on Cpu, expected F32 or F16 on the CPU");
    says(&Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap().t().unwrap(), "the matrix is not contiguous");
    // Where the query is 0, too.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [[bad, 1.0], [1.0, bad]] {
            let rows = Tensor::new(&[[1.0, 0.0], place], &Device::Cpu).unwrap();
            says(&rows, "row 1 times the query is not finite");
        }
        let query = Tensor::new(&[1.0, bad], &Device::Cpu).unwrap();
        let error = top_k(&rows, &query, 1).unwrap_err().to_string();
        assert!(error.starts_with("the query has a number that is not finite"), "{error}");
    }
}

#[test]
fn wrong_arguments_change_nothing() {
    let place = Place::new(2);
    let mut index = place.create(VectorDtype::F16);
    index.append(&[1.0, 0.0, 0.0, 1.0], &records("r", 2)).unwrap();
    let before = files(&place.path());
    let says = |result: mc_embed::index::Result<()>, what: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(what) && error.hint().is_some(), "{error}");
        // In a function that embeds, too.
        let (message, hint) = (error.to_string(), error.hint());
        let error = mc_embed::Error::from(error);
        assert_eq!((error.to_string(), error.hint()), (message, hint));
    };
    says(index.append(&[1.0, 2.0, 3.0], &[]), "3 numbers are no vectors of 2 dimensions");
    says(index.append(&[1.0, 2.0], &records("r", 3)), "3 records for 1 vectors");
    says(index.append(&[1.0, 2.0, f32::NAN, 0.0], &[]), "vector 1 has a number that is not finite: NaN");
    says(index.remove(&[2]), "no row 2 of 2");
    says(index.record(2).map(drop), "no row 2 of 2");
    says(index.replace(&[0, 0], &[1.0; 4], &[]), "4 numbers for 1 different rows");
    says(index.search(&[1.0], 1).map(drop), "the query has 1 dimensions, expected 2");
    says(index.search(&[1.0, f32::INFINITY], 1).map(drop), "not finite");
    says(index.check_model("x", &[1.0, 0.0, 0.0]), "expected `x` with 3");
    index.check_model("x", &[1.0, 0.0]).unwrap();
    assert_eq!(files(&place.path()), before);
    let wide = IndexConfig { dimensions: 70_000, ..IndexConfig::default() };
    let error = VectorIndex::create(place.dir.path().join("wide"), wide).unwrap_err();
    assert!(error.to_string().contains("`dimensions` is 70000"), "{error}");
    assert!(!place.dir.path().join("wide").exists());
}

#[test]
fn a_directory_is_not_taken_over() {
    let place = Place::new(2);
    drop(place.create(VectorDtype::F32));
    let create =
        |dir: &Path| VectorIndex::create(dir, IndexConfig { dimensions: 2, ..IndexConfig::default() }).map(drop);
    let error = create(&place.path()).unwrap_err();
    assert!(matches!(error, Error::Occupied { what: "holds an index already", .. }), "{error}");
    assert!(error.hint().unwrap().contains("up to date"));
    fs::write(place.dir.path().join("thesis.txt"), "years").unwrap();
    assert!(matches!(create(place.dir.path()), Err(Error::Occupied { what: "is not empty, and no index", .. })));
    let error = create(&place.dir.path().join("thesis.txt")).unwrap_err();
    assert!(error.to_string().ends_with("thesis.txt: is a file"), "{error}");
    // Somebody's files with names like ours are not ours.
    for (name, content) in [("rows-train.safetensors", "years"), (".tmp-notes", "hours"), ("lock", "mine")] {
        let dir = place.dir.path().join(format!("of {name}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), content).unwrap();
        assert!(matches!(create(&dir), Err(Error::Occupied { what: "is not empty, and no index", .. })), "{name}");
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), content);
    }
    // What a creation left that was interrupted is nothing.
    fs::remove_file(place.path().join("index.json")).unwrap();
    fs::write(place.path().join(".tmp-aB3x9Z"), "half").unwrap();
    // Unless another run is at it.
    let lock = fs::File::open(place.path().join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(create(&place.path()), Err(Error::Busy { .. })));
    drop(lock);
    create(&place.path()).unwrap();
}

#[test]
fn what_is_removed_is_the_index_alone() {
    let place = Place::new(2);
    place.create(VectorDtype::Int8).append(&[1.0, 0.0], &[]).unwrap();
    fs::write(place.path().join("thesis.txt"), "years").unwrap();
    let old = VectorIndex::open(place.path()).unwrap();
    VectorIndex::open(place.path()).unwrap().append(&[0.0, 1.0], &[]).unwrap();
    assert!(matches!(old.delete(), Err(Error::Busy { .. })));
    assert_eq!(VectorIndex::open(place.path()).unwrap().len(), 2);
    VectorIndex::open(place.path()).unwrap().delete().unwrap();
    assert_eq!(names(&place.path()), ["thesis.txt"]);
}

/// A byte that has changed on disk, in whichever tensor, is noticed before it is copied into the next generation.
#[test]
fn a_flipped_byte_is_said() {
    for dtype in DTYPES {
        let place = Place::new(4);
        place.create(dtype).append(&noise(40, 1), &records("r", 10)).unwrap();
        let rows = place.path().join("rows-1.safetensors");
        let whole = fs::read(&rows).unwrap();
        let tensors = tensors(&whole);
        assert_eq!(tensors.len(), if dtype == VectorDtype::Int8 { 5 } else { 3 }, "{tensors:?}");
        for (name, bytes_of) in tensors {
            let mut bytes = whole.clone();
            bytes[bytes_of.start + bytes_of.len() / 2] ^= 1;
            fs::write(&rows, bytes).unwrap();
            let error = VectorIndex::open(place.path()).unwrap().append(&[1.0; 4], &[]).unwrap_err();
            assert!(error.to_string().contains("rows-1.safetensors: not what was written"), "{name}: {error}");
            assert!(error.hint().unwrap().contains("anew"));
        }
        // It can be removed as any other.
        VectorIndex::open(place.path()).unwrap().delete().unwrap();
        assert!(names(&place.path()).is_empty());
        let mut index = place.create(dtype);
        index.append(&[1.0; 4], &[]).unwrap();
    }
}

/// Where in a safetensors file the tensors are that hold anything.
fn tensors(file: &[u8]) -> Vec<(String, std::ops::Range<usize>)> {
    let first = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&file[8..first]).unwrap();
    let at = |value: &serde_json::Value| first + value.as_u64().unwrap() as usize;
    let range = |value: &serde_json::Value| at(&value["data_offsets"][0])..at(&value["data_offsets"][1]);
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    tensors.map(|(name, value)| (name.clone(), range(value))).filter(|(_, range)| !range.is_empty()).collect()
}

/// A crash before the manifest is replaced leaves the old index; the next change removes what it left.
#[test]
fn a_crash_in_between_leaves_the_old_index() {
    let place = Place::new(2);
    let mut index = place.create(VectorDtype::Int8);
    index.append(&[1.0, 0.0], &records("old", 1)).unwrap();
    let manifest = fs::read(place.path().join("index.json")).unwrap();
    let rows = fs::read(place.path().join("rows-1.safetensors")).unwrap();
    index.append(&[0.0, 1.0], &records("new", 1)).unwrap();
    // As if it had come as far as the rows, and no further.
    fs::write(place.path().join("index.json"), manifest).unwrap();
    fs::write(place.path().join("rows-1.safetensors"), rows).unwrap();
    fs::write(place.path().join(".tmp-aB3x9Z"), "half of a manifest").unwrap();
    let mut old = VectorIndex::open(place.path()).unwrap();
    assert_eq!((old.len(), old.record(0).unwrap()), (1, "old 0 é"));
    assert_eq!(index.len(), 2, "who has it open keeps it");
    old.append(&[0.0, 1.0, 1.0, 1.0], &records("again", 2)).unwrap();
    assert_eq!(VectorIndex::open(place.path()).unwrap().record(2).unwrap(), "again 1 é");
    assert_eq!(names(&place.path()), ["index.json", "lock", "rows-2.safetensors"]);
}

#[test]
fn two_writers_do_not_overwrite_each_other() {
    let place = Place::new(1);
    let mut one = place.create(VectorDtype::F32);
    let mut other = VectorIndex::open(place.path()).unwrap();
    one.append(&[1.0], &[]).unwrap();
    let error = other.append(&[2.0], &[]).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let lock = fs::File::open(place.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let error = one.append(&[2.0], &[]).unwrap_err();
    assert!(error.to_string().contains("another run is writing this index"), "{error}");
    drop(lock);
    one.append(&[2.0], &[]).unwrap();
    assert_eq!(VectorIndex::open(place.path()).unwrap().len(), 2);
}

/// Whoever opens an index while it changes gets one of its states, whole.
#[test]
fn readers_are_not_disturbed_by_a_writer() {
    const CHANGES: usize = 60;
    let place = Place::new(8);
    let mut index = place.create(VectorDtype::Int8);
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for i in 0..CHANGES {
                index.append(&noise(8, i as u64), &[format!("row {i}")]).unwrap();
            }
        });
        let mut seen = 0;
        while !writer.is_finished() {
            let index = VectorIndex::open(place.path()).unwrap();
            assert!(index.len() >= seen);
            seen = index.len();
            for hit in index.search(&noise(8, 99), 3).unwrap() {
                assert_eq!(index.record(hit.row).unwrap(), format!("row {}", hit.row));
            }
        }
    });
    assert_eq!(VectorIndex::open(place.path()).unwrap().len(), CHANGES);
}

#[test]
fn a_model_is_known_by_its_vectors() {
    let place = Place::new(2);
    let config =
        IndexConfig { model: "m".into(), fingerprint: vec![3.0, 4.0], dimensions: 2, ..IndexConfig::default() };
    VectorIndex::create(place.path(), config).unwrap();
    let index = VectorIndex::open(place.path()).unwrap();
    index.check_model("m", &[0.6, 0.8001]).unwrap();
    let error = index.check_model("n", &[0.8, 0.6]).unwrap_err();
    assert!(error.to_string().contains("model `m`, expected `n`, whose vectors differ (cosine 0.960"), "{error}");
    assert!(error.hint().unwrap().contains("another index"));
    // What another dtype makes of it is the same model; what is further off is not. Angles from (0.6, 0.8).
    let at = |cosine: f32| {
        let sine = (1.0 - cosine * cosine).sqrt();
        [0.6 * cosine - 0.8 * sine, 0.8 * cosine + 0.6 * sine]
    };
    index.check_model("m", &at(0.9992)).unwrap();
    // The same name, and other files in its directory.
    for other in [&at(0.9985)[..], &[1.0, 0.0, 0.0]] {
        let error = index.check_model("m", other).unwrap_err();
        assert!(error.to_string().ends_with("the files of its model `m` have changed since it was made"), "{error}");
        assert!(error.hint().unwrap().contains("into another directory"));
    }
}

/// Each kind of damage is one line that names the file.
#[test]
fn damage_is_said() {
    let place = Place::new(4);
    place.create(VectorDtype::Int8).append(&noise(40, 1), &records("r", 10)).unwrap();
    let (json, rows) = (place.path().join("index.json"), place.path().join("rows-1.safetensors"));
    let (json_was, rows_were) = (fs::read(&json).unwrap(), fs::read(&rows).unwrap());
    let damage = |file: &Path, content: &[u8], what: &str| {
        fs::write(file, content).unwrap();
        let error = VectorIndex::open(place.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(what) && !text.contains('\n'), "{text}");
        assert!(text.contains(file.file_name().unwrap().to_str().unwrap()), "{text}");
        assert!(error.hint().is_some_and(|hint| hint.contains("anew")), "{text}");
        fs::write(&json, &json_was).unwrap();
        fs::write(&rows, &rows_were).unwrap();
        VectorIndex::open(place.path()).unwrap();
    };
    let edited = |from: &str, to: &str| String::from_utf8(json_was.clone()).unwrap().replace(from, to).into_bytes();
    damage(&json, b"{", "EOF");
    damage(&json, b"{}", "missing field `format`");
    damage(&json, &edited("\"version\":2", "\"version\":3"), "format `metal-candle index` 3");
    damage(&json, &edited("\"dimensions\":4", "\"dimensions\":0"), "`dimensions` is 0");
    damage(&json, &edited("\"fingerprint\":[]", "\"fingerprint\":[1]"), "`fingerprint` has 1 numbers");
    damage(&json, &vec![b' '; (64 << 20) + 1], "larger than 64 MiB");
    damage(&rows, &rows_were[..rows_were.len() - 1], "bytes of tensors");
    damage(&rows, b"not a safetensors file", "header");
    damage(&rows, b"", "empty");
    // A manifest of other rows than the file has.
    fs::write(&json, edited("\"rows\":10", "\"rows\":11")).unwrap();
    let error = VectorIndex::open(place.path()).unwrap_err().to_string();
    assert!(error.contains("tensor `vectors` is (10, 4), expected (11, 4)"), "{error}");
    fs::write(&json, edited("int8", "f32")).unwrap();
    let error = VectorIndex::open(place.path()).unwrap_err().to_string();
    assert!(error.contains("has dtype F16"), "{error}");
    fs::write(&json, &json_was).unwrap();
    fs::remove_file(&rows).unwrap();
    let error = VectorIndex::open(place.path()).unwrap_err();
    assert!(error.to_string().contains("rows-1.safetensors: no such file"), "{error}");
    assert!(error.hint().unwrap().contains("anew"));
}

/// A pipe that nobody writes to would be waited for.
#[test]
#[cfg(unix)]
fn a_pipe_in_the_place_of_a_file_is_refused() {
    for name in ["index.json", "rows-1.safetensors", "lock"] {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let place = Place::new(4);
            place.create(VectorDtype::F16).append(&noise(8, 1), &[]).unwrap();
            let path = place.path().join(name);
            fs::remove_file(&path).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            let result = VectorIndex::open(place.path()).and_then(|mut index| index.remove(&[0]));
            send.send(result.unwrap_err()).unwrap();
        });
        let error = receive.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        assert!(error.to_string().contains(&format!("{name}: not a file")), "{error}");
        assert!(error.hint().unwrap().contains("anew"));
    }
}

#[test]
fn where_no_index_is_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for (path, what) in [
        (dir.path().join("nowhere"), "no such directory"),
        (dir.path().to_path_buf(), "no index.json"),
        (file, "a file, not a directory"),
    ] {
        let error = VectorIndex::open(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: no index there: {what}", path.display()));
        assert!(error.hint().is_some());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    names(dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}
