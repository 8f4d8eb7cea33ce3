//! `index` and `search`: a folder of notes, a small model of random weights, and everything that can be wrong with them.

use crate::place::{Place, Run};
use serde_json::{Value, json};
use std::{fs, path::Path};

const INDEX: &str = "index notes --output index --model model --quiet";

/// A folder of notes beside two small embedding models.
fn place() -> Place {
    let place = Place::with_encoder("bert-mean");
    place.copy_encoder("mpnet-mean", "other");
    let note = |name: &str, text: &str| fs::write(place.path(name), text).unwrap();
    fs::create_dir_all(place.path("notes/deep")).unwrap();
    note("notes/tides.md", "# Tides\n\nThe sea rises twice a day.\n\n# Boats\n\nA boat lies dry at noon.\n");
    note("notes/deep/cats.txt", "Cats sleep.\n\nDogs bark at night.\n");
    note("notes/program.rs", "fn main() {}\n");
    place
}

fn search(place: &Place, query: &str, more: &[&str]) -> Run {
    Run::of(place.command().args(["search", "--index", "index", query]).args(more)).ok()
}

fn hits(place: &Place, query: &str) -> Vec<Value> {
    search(place, query, &["--json", "--quiet"]).json()
}

#[test]
fn a_folder_is_indexed_and_searched() {
    let place = place();
    let first = place.run(&format!("{INDEX} --chunk-size 10 --json")).ok().json().remove(0);
    let count = |run: &Value, what: &str| run[what].as_u64().unwrap();
    assert_eq!((&first["event"], &first["index"]), (&json!("done"), &json!("index")));
    assert_eq!((count(&first, "files"), count(&first, "added"), count(&first, "unchanged")), (2, 2, 0));
    assert!(count(&first, "chunks") >= 3 && first["chunks"] == first["embedded"], "{first}");

    // A chunk's own text is nearest to itself.
    for hit in hits(&place, "boat") {
        let best = hits(&place, hit["text"].as_str().unwrap()).remove(0);
        assert_eq!(
            (&best["path"], &best["first_line"], &best["text"]),
            (&hit["path"], &hit["first_line"], &hit["text"])
        );
        assert!(best["score"].as_f64().unwrap() > 0.999, "{best}");
        // And it stands where the hit says.
        let file = fs::read_to_string(place.path(hit["path"].as_str().unwrap())).unwrap();
        let (first, last) = (count(&hit, "first_line") as usize, count(&hit, "last_line") as usize);
        let lines: Vec<_> = file.lines().skip(first - 1).take(last + 1 - first).collect();
        assert!(lines.join("\n").contains(hit["text"].as_str().unwrap()), "{hit}");
    }
    // For a person, with the place first; from elsewhere by its whole path; the index knows its model.
    let text = search(&place, "boats", &["--top-k", "1"]);
    let line = text.stdout.lines().next().unwrap();
    assert!(line.contains("  notes/") && line.rsplit(':').next().unwrap().parse::<usize>().is_ok(), "{}", text.stdout);
    assert!(text.stdout.lines().nth(1).unwrap().starts_with("       "), "{}", text.stdout);
    let mut elsewhere = place.command();
    elsewhere.current_dir(place.path("model")).args(["search", "--index", "../index", "boats", "--json"]);
    let path = Run::of(&mut elsewhere).ok().json()[0]["path"].as_str().unwrap().to_string();
    assert!(Path::new(&path).is_absolute() && Path::new(&path).is_file(), "{path}");
}

#[test]
fn the_second_run_does_what_has_changed() {
    let place = place();
    place.run(&format!("{INDEX} --vectors int8")).ok();
    fs::write(place.path("notes/new.md"), "Something new about herons.").unwrap();
    fs::remove_file(place.path("notes/deep/cats.txt")).unwrap();
    let again = place.run("index notes --output index --json --quiet").ok().json().remove(0);
    let counts = ["added", "changed", "removed", "unchanged", "embedded"].map(|what| again[what].as_u64().unwrap());
    assert_eq!(counts, [1, 0, 1, 1, 1], "{again}");
    let paths: Vec<_> = hits(&place, "cats").iter().map(|hit| hit["path"].as_str().unwrap().to_string()).collect();
    assert!(paths.contains(&"notes/new.md".into()) && !paths.contains(&"notes/deep/cats.txt".into()), "{paths:?}");
    // In words, with what was left out.
    fs::write(place.path("notes/binary.md"), b"a\0b").unwrap();
    fs::write(place.path("notes/.secret.md"), "not mentioned").unwrap();
    let words = place.run("index notes --output index").ok();
    assert!(
        words.stdout.starts_with("index: 2 files (0 added, 0 changed, 2 unchanged, 0 removed), "),
        "{}",
        words.stdout
    );
    assert!(words.stderr.ends_with("left out notes/binary.md: binary\n"), "{}", words.stderr);
    // A new name is said, and where it is.
    fs::rename(place.path("notes/new.md"), place.path("notes/newer.md")).unwrap();
    let words = place.run("index notes --output index").ok();
    let said = "index: 2 files (1 added, 0 changed, 1 unchanged, 1 removed, 1 moved or copied), 3 chunks, 0 of them";
    assert!(words.stdout.starts_with(said), "{}", words.stdout);
    assert!(hits(&place, "herons").iter().any(|hit| hit["path"] == "notes/newer.md"));
    fs::copy(place.path("notes/newer.md"), place.path("notes/copy.md")).unwrap();
    let run = place.run("index notes --output index --json").ok().json().remove(0);
    assert_eq!((&run["moved"], &run["added"], &run["embedded"]), (&json!(1), &json!(1), &json!(0)));
}

/// Neither a text nor the name of a file tells a terminal what to do, and a hit is on one line; a script gets them as they are.
#[test]
#[cfg(unix)]
fn control_characters_are_written_out_for_people() {
    let place = place();
    let (name, text) = ("notes/an\u{1b}[31m\nother.md", "one\u{1b}]0;title\u{7} two\rthree\r\n\ttab\n");
    fs::write(place.path(name), text).unwrap();
    fs::write(place.path("notes/bad\u{1b}c.md"), b"a\0b").unwrap();
    let run = place.run("index notes --output index --model model").ok();
    assert!(run.stderr.contains(r"left out notes/bad\u{1b}c.md: binary"), "{}", run.stderr);
    let people = search(&place, "one two three", &["--top-k", "9"]);
    assert!(people.stdout.contains(&format!("  {}:1\n", r"notes/an\u{1b}[31m\nother.md")), "{}", people.stdout);
    assert!(people.stdout.contains(r"one\u{1b}]0;title\u{7} two\rthree"), "{}", people.stdout);
    let run = place.run("index nowhere\u{1b}[31m --output new");
    for shown in [&people.stdout, &people.stderr, &run.stderr] {
        assert!(!shown.contains(|c: char| c.is_control() && !"\n\t".contains(c)), "{shown:?}");
    }
    let hits = hits(&place, "one two three");
    assert!(hits.iter().any(|hit| hit["path"] == name && hit["text"] == text.trim()), "{hits:?}");
}

/// A first run that was interrupted before it wrote any chunk binds nobody.
#[test]
fn an_index_without_rows_takes_new_options() {
    let place = place();
    place.run(INDEX).ok();
    for file in ["notes/tides.md", "notes/deep/cats.txt"] {
        fs::write(place.path(file), "").unwrap();
    }
    place.run("index notes --output index").ok();
    fs::create_dir(place.path("else")).unwrap();
    fs::write(place.path("else/main.rs"), "fn main() {}").unwrap();
    let options = "--model other --extensions rs --chunk-size 12 --vectors f32";
    let run = place.run(&format!("index else --output index {options} --json")).ok().json().remove(0);
    assert_eq!((&run["files"], &run["chunks"]), (&json!(1), &json!(1)), "{run}");
    assert_eq!(hits(&place, "main")[0]["path"], "else/main.rs");
    assert_eq!(place.run("index else --output index --chunk-size 13").status, 2);
    place.run("index else --output index").ok();
}

/// A directory that was there before a run that comes to nothing is there afterwards, and what is in it.
#[test]
fn a_run_that_comes_to_nothing_removes_nothing() {
    let place = place();
    for dir in ["empty", "ready", "real"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink("real", place.path("link")).unwrap();
    let outputs =
        ["empty", "ready", "new", "real/a/b/c", "deep/er/new"].into_iter().chain(cfg!(unix).then_some("link"));
    for output in outputs {
        let run = place.run(&format!("index empty --output {output} --model model"));
        assert!(run.status == 2 && run.stderr.contains("empty: no text to index"), "{}", run.stderr);
    }
    for dir in ["empty", "ready", "real"] {
        assert_eq!(fs::read_dir(place.path(dir)).unwrap().count(), 0, "{dir}");
    }
    assert!(!place.path("new").exists() && !place.path("deep").exists());
    assert!(cfg!(not(unix)) || place.path("link").is_symlink());
    // A folder that is empty today takes nothing from its index.
    place.run(INDEX).ok();
    fs::rename(place.path("notes"), place.path("away")).unwrap();
    fs::create_dir(place.path("notes")).unwrap();
    let run = place.run("index notes --output index");
    assert!(run.status == 2 && run.stderr.contains("notes: none of the files in the index is left"), "{}", run.stderr);
    assert!(!hits(&place, "boats").is_empty());
}

#[test]
fn an_empty_index_says_so() {
    let place = place();
    place.run(INDEX).ok();
    for file in ["notes/tides.md", "notes/deep/cats.txt"] {
        fs::write(place.path(file), "").unwrap();
    }
    place.run("index notes --output index").ok();
    let run = place.run("search --index index boats");
    assert_eq!((run.status, run.stdout.as_str()), (2, ""));
    let said = "error: index: the index is empty\nhint: fill it with metal-candle index notes --output index\n";
    assert_eq!(run.stderr, said);
}

/// An index is searched with a model that has moved, once it is said where it is.
#[test]
fn a_model_may_move() {
    let place = place();
    place.run(INDEX).ok();
    fs::rename(place.path("model"), place.path("moved")).unwrap();
    let run = place.run("search --index index boats");
    assert!(run.status == 2 && run.stderr.contains("/model is not there\nhint: if it has moved"), "{}", run.stderr);
    assert_eq!(place.run("index notes --output index").status, 2);
    search(&place, "boats", &["--model", "moved"]);
    assert!(place.run("search --index index boats --model other").stderr.contains("the index has model"));
    // Named once to `index`, it is known.
    place.run("index notes --output index --model moved").ok();
    search(&place, "boats", &[]);
}

#[test]
fn what_is_cut_is_said() {
    let place = place();
    let run = place.run(&format!("{INDEX} --json")).ok().json().remove(0);
    assert_eq!(run["truncated"], 0);
    let query = "boats and tides ".repeat(200);
    let run = search(&place, &query, &[]);
    assert!(run.stderr.contains("the query is cut at ") && !run.stderr.contains("WARN"), "{}", run.stderr);
    // A directory that was edited since: its model reads one token less than a chunk has.
    place.set("model/sentence_bert_config.json", "max_seq_length", Some(json!(47)));
    fs::write(place.path("notes/tides.md"), "a ".repeat(80)).unwrap();
    let run = place.run("index notes --output index").ok();
    assert!(run.stdout.ends_with(", 1 cut at 47 tokens\n"), "{}\n{}", run.stdout, run.stderr);
    assert!(!run.stderr.contains("WARN"), "{}", run.stderr);
}

/// The index is of so many dimensions, a question is cut to them, and its scores are the cosines of what `embed` gives of both.
#[test]
fn vectors_of_fewer_dimensions() {
    let place = place();
    place.run(&format!("{INDEX} --dimensions 6 --vectors f32 --chunk-size 12")).ok();
    let vector = |text: &str, kind: &str| -> Vec<f64> {
        fs::write(place.path("line.txt"), text.replace('\n', " ")).unwrap();
        let run = place.run(&format!("embed line.txt --model model --dimensions 6 {kind} --quiet")).ok().json();
        run[0].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let query = vector("boats", "--query");
    assert_eq!(query.len(), 6);
    let found = hits(&place, "boats");
    assert!(found.len() >= 3, "{found:?}");
    for hit in &found {
        let cosine: f64 =
            query.iter().zip(vector(hit["text"].as_str().unwrap(), "--document")).map(|(a, b)| a * b).sum();
        assert!((hit["score"].as_f64().unwrap() - cosine).abs() < 1e-4, "{hit}, not {cosine}");
    }
    // Fixed once there are rows, so nobody has to say it again.
    place.run("index notes --output index").ok();
    for (dimensions, error, hint) in [
        (7, "error: index: the index has dimensions 6, expected 7\n", "leave that option out"),
        (20, "error: index: the index has dimensions 6, expected 20\n", "leave that option out"),
    ] {
        let run = place.run(&format!("index notes --output index --dimensions {dimensions}"));
        assert!(run.status == 2 && run.stderr.starts_with(error) && run.stderr.contains(hint), "{}", run.stderr);
    }
    for dimensions in [0, 21] {
        let run = place.run(&format!("index notes --output other.index --model model --dimensions {dimensions}"));
        let error = format!("error: cannot cut vectors of 20 dimensions to {dimensions}\nhint: ask for 1 to 20\n");
        assert!(run.status == 2 && run.stderr == error && !place.path("other.index").exists(), "{}", run.stderr);
    }
}

/// A measure under which others may be nearest is said; that of vectors of length 1 is the cosine whatever its name.
#[test]
fn a_similarity_that_is_not_the_cosine_is_said() {
    let place = place();
    let said = |index: &str| {
        let run = place.run(&format!("index notes --output {index} --model model")).ok();
        let again = place.run(&format!("search --index {index} boats")).ok();
        [run, again].map(|run| run.stderr.matches("compared by `").count())
    };
    let settings = "model/config_sentence_transformers.json";
    for (at, (name, expected)) in [("cosine", 0), ("dot", 0), ("manhattan", 1)].into_iter().enumerate() {
        fs::write(place.path(settings), json!({"similarity_fn_name": name}).to_string()).unwrap();
        assert_eq!(said(&format!("unit{at}")), [expected; 2], "{name}");
    }
    let modules: Value = serde_json::from_slice(&fs::read(place.path("model/modules.json")).unwrap()).unwrap();
    let without: Vec<_> = modules.as_array().unwrap().iter().take(2).cloned().collect();
    fs::write(place.path("model/modules.json"), json!(without).to_string()).unwrap();
    for (at, (name, expected)) in [("cosine", 0), ("dot", 1)].into_iter().enumerate() {
        fs::write(place.path(settings), json!({"similarity_fn_name": name}).to_string()).unwrap();
        assert_eq!(said(&format!("any{at}")), [expected; 2], "{name}");
    }
}

/// Of a directory without modules the pooling is a guess, which whoever indexes and searches with it should know.
#[test]
fn an_assumed_pooling_is_said() {
    let place = place();
    place.copy_encoder("bert-bare", "bare");
    let said = "/bare: bert, mean pooling (its directory names none); 20 dimensions, at most 64 tokens\n";
    let runs = |index: &str, search: &str| [place.run(index).ok(), place.run(search).ok()];
    for run in runs("index notes --output guess --model bare", "search --index guess boats") {
        assert_eq!(run.stderr.matches(said).count(), 1, "{run:?}");
    }
    for run in runs("index notes --output index --model model", "search --index index boats") {
        assert!(!run.stderr.contains("pooling"), "{run:?}");
    }
}

#[test]
fn extensions_choose_the_files() {
    let place = place();
    let run = place.run(&format!("{INDEX} --extensions .RS --json")).ok().json().remove(0);
    assert_eq!(run["files"], 1);
    assert_eq!(hits(&place, "main")[0]["path"], "notes/program.rs");
}

/// A wrong call is one line and a hint, with status 2, and writes nothing.
#[test]
fn what_is_wrong_is_said() {
    let place = place();
    place.run(&format!("{INDEX} --chunk-size 16")).ok();
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("empty/data.bin"), "x").unwrap();
    fs::create_dir(place.path("damaged")).unwrap();
    fs::write(place.path("damaged/index.json"), "{}").unwrap();
    let before = place.files();
    let cases = [
        ("search --index index ''", "the query is empty"),
        ("search --index nowhere boats", "nowhere: no index there: no such directory"),
        ("search --index notes boats", "notes: no index there: no index.json"),
        ("search --index damaged boats", "damaged/index.json: missing field `format`"),
        ("search --index index boats --top-k 0", "0 is not in 1..="),
        ("search --index index", "required arguments were not provided: <QUERY>"),
        ("search boats", "--index <DIR>"),
        ("index nowhere --output new --model model", "nowhere: "),
        ("index notes/tides.md --output new --model model", "notes/tides.md is a file"),
        ("index empty --output new --model model", "empty: no text to index"),
        ("index notes --output new --model nowhere/at-all", "nowhere/at-all"),
        ("index notes --output notes --model model", "notes: is not empty, and no index"),
        ("index notes --output notes/tides.md --model model", "notes/tides.md: is a file"),
        ("index notes --output new --model model --vectors int4", "int4"),
        ("index notes --output new --model model --chunk-size 3", "`--chunk-size` is 3, expected 10 or more"),
        ("index notes --output new --model model --chunk-size 9999", "`--chunk-size` is 9999, expected at most"),
        (
            "index notes --output new --model model --chunk-size 16 --chunk-overlap 9",
            "`--chunk-overlap` is 9, expected at most 8",
        ),
        ("index notes --output new --model model --extensions ,", "`--extensions` names none"),
        ("index notes --output index --model other", "index: the index has model"),
        ("index empty --output index", "index: the index has folder"),
        ("index notes --output index --vectors f32", "index: the index has vectors f16, expected f32"),
        ("index notes --output index --chunk-size 12", "index: the index has chunk size 16, expected 12"),
    ];
    for (args, message) in cases {
        let run = place.run(args);
        let lines: Vec<_> = run.stderr.lines().collect();
        let [.., error, hint] = lines.as_slice() else { panic!("{args}: {}", run.stderr) };
        assert!(error.starts_with("error: ") && error.contains(message), "{args}: {}", run.stderr);
        assert!(hint.starts_with("hint: ") && hint.len() > 14 && !hint.ends_with('.'), "{args}: {}", run.stderr);
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{args}: {}", run.stderr);
    }
    assert_eq!(place.files(), before);
}

/// A model whose weights have changed since is another model, though its name is the same.
#[test]
fn a_model_that_has_changed_is_said() {
    let place = place();
    place.run(INDEX).ok();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json"] {
        let (from, to) = (place.path("other").join(file), place.path("model").join(file));
        let _ = fs::remove_file(&to);
        if from.exists() {
            fs::copy(from, to).unwrap();
        }
    }
    let run = place.run("search --index index boats");
    assert!(run.status == 2 && run.stderr.contains("/model` have changed since it was made\nhint: index "), "{run:?}");
}
