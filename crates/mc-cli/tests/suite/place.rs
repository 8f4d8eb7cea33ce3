//! A directory to run the binary in: `model/`, `data.jsonl` and, where it is asked for, `adapter/`.

use assert_cmd::Command;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tempfile::TempDir;

/// Records that the tokenizer of `model/` knows the words of.
pub(crate) const DATA: &str = r#"{"prompt": "Sort README.md =>", "completion": " sort README.md"}
{"prompt": "List everything that is empty =>", "completion": " find . -empty"}
{"prompt": "Create the new branch docs =>", "completion": " git switch -c docs"}
{"prompt": "Show who I am =>", "completion": " whoami"}
{"prompt": "Count the lines of notes.txt =>", "completion": " wc -l notes.txt"}
{"prompt": "Print the current directory =>", "completion": " pwd"}
"#;

/// Trains in a moment.
pub(crate) const FINETUNE: &str =
    "finetune --model model --data data.jsonl --output out --batch-size 2 --rank 2 --lr 1e-3";

/// Where a test runs the binary; removed at its end.
pub(crate) struct Place(TempDir);

impl Place {
    /// Nothing yet.
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One of the golden embedding models, by another name.
    pub(crate) fn copy_encoder(&self, golden: &str, name: &str) {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mc-embed/tests/golden/models");
        copy(&models.join(golden), &self.path(name));
    }

    /// The files of the embedded model, and six records.
    pub(crate) fn new() -> Self {
        let place = Self::empty();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/model"), &place.path("model"));
        fs::write(place.path("data.jsonl"), DATA).unwrap();
        place
    }

    /// The same, and an adapter of this model with rank 2.
    pub(crate) fn with_adapter() -> Self {
        static ADAPTER: OnceLock<Place> = OnceLock::new();
        let trained = ADAPTER.get_or_init(|| {
            let place = Self::new();
            let run = place.run(&format!("{FINETUNE} --steps 1"));
            assert_eq!(run.status, 0, "{}", run.stderr);
            place
        });
        let place = Self::new();
        fs::create_dir(place.path("adapter")).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(trained.path("out").join(file), place.path("adapter").join(file)).unwrap();
        }
        place
    }

    /// A directory with one of the golden embedding models, called `model`.
    pub(crate) fn with_encoder(name: &str) -> Self {
        let place = Self::empty();
        place.copy_encoder(name, "model");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The binary, in this directory, away from the network and from what the caller's environment says.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::cargo_bin("metal-candle").unwrap();
        command.current_dir(self.0.path()).env("HF_HOME", self.path("hub")).env("HF_HUB_OFFLINE", "1");
        // Developers have this set; it must not show in errors.
        command.env("RUST_BACKTRACE", "1");
        for name in ["METAL_CANDLE_LOG", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "CARGO"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs the binary with words separated by spaces; one of `''` is empty.
    pub(crate) fn run(&self, args: &str) -> Run {
        Run::of(self.command().args(words(args)))
    }

    /// Changes a field of a JSON file, or removes it.
    pub(crate) fn set(&self, file: &str, field: &str, value: Option<Value>) {
        let mut json: Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        let fields = json.as_object_mut().unwrap();
        match value {
            Some(value) => fields.insert(field.into(), value),
            None => fields.remove(field),
        };
        fs::write(self.path(file), json.to_string()).unwrap();
    }

    /// Every file there is, by its path from here.
    pub(crate) fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, root: &Path, files: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, files);
                } else {
                    files.push(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut files = vec![];
        walk(self.0.path(), self.0.path(), &mut files);
        files.sort();
        files
    }
}

/// Words of a command line without a shell.
pub(crate) fn words(args: &str) -> impl Iterator<Item = &str> {
    args.split_whitespace().map(|word| if word == "''" { "" } else { word })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

/// What a run of the binary left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The run, if it ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self
    }

    /// The lines of stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
