//! Ctrl-C and SIGTERM: the run ends after its step, its state is saved, and it can go on.

use crate::place::{DATA, FINETUNE, Place, words};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

#[test]
fn an_interrupted_run_is_saved_and_goes_on() {
    let stderr = ends_and_goes_on("-INT");
    assert!(stderr.contains("stopping after this step"), "{stderr}");
}

/// As a container or a queue of jobs ends it.
#[test]
fn a_terminated_run_is_saved_and_goes_on() {
    ends_and_goes_on("-TERM");
}

/// Who does not want to wait for a long step presses it again. What came from elsewhere before does not count as pressed.
#[test]
fn ctrl_c_again_ends_a_run_at_once() {
    let place = Place::new();
    fs::write(place.path("data.jsonl"), DATA.repeat(2000)).unwrap();
    // All of it in one step, which takes longer than the signals.
    let (mut child, _lines) = long_run(&place, "--grad-accum 100000", "start");
    send("-TERM", &child);
    send("-INT", &child);
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(stderr.any(|line| line == "stopping after this step; Ctrl-C again stops at once, without saving"));
    send("-INT", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!place.path("out/run/state.safetensors").exists());
}

/// A run of many steps in this place that has told of the first such event, and the lines that it still prints. The handlers are
/// set before any.
fn long_run(place: &Place, options: &str, event: &str) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("metal-candle"));
    command.current_dir(place.path("")).args(words(FINETUNE)).args(words(options));
    command.args(words("--steps 1000000 --schedule constant --json"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains(&format!("\"event\":\"{event}\""))));
    (child, lines)
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// What a run says that gets this signal.
fn ends_and_goes_on(signal: &str) -> String {
    let place = Place::new();
    let (mut child, lines) = long_run(&place, "", "step");
    send(signal, &child);
    if signal == "-TERM" {
        // `timeout` sends it to the process and to its group.
        send(signal, &child);
    }
    let rest: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(status.success(), "{status}: {stderr}");
    let done = rest.iter().find(|event| event["event"] == "done").unwrap();
    assert_eq!(done["stopped"], true);
    let steps = done["steps"].as_u64().unwrap();
    assert!(rest.iter().any(|event| event["event"] == "saved" && event["step"] == steps), "{rest:?}");
    assert!(stderr.contains("stopped early") && stderr.contains("--resume"), "{stderr}");

    let more = place.run(&format!("{FINETUNE} --steps {} --schedule constant --resume", steps + 1)).ok();
    assert!(more.stderr.contains(&format!("going on after step {steps}")), "{}", more.stderr);
    assert!(place.path("out/adapter_config.json").is_file());
    stderr
}
