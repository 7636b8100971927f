//! monitor: thresholds, statuses, formats.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
    command.args(line.split(' ')).current_dir(dir).output().unwrap()
}

fn says(dir: &Path, line: &str, status: i32) -> String {
    let output = run(dir, line);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{line}: {err}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn chain() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vm = dir.path().join("v\"m\\\n1");
    std::fs::create_dir(&vm).unwrap();
    for line in [
        "create base.vhdx --size 16M --block-size 1M",
        "checkpoint base.vhdx a.avhdx",
        "checkpoint a.avhdx b.avhdx",
    ] {
        says(&vm, line, 0);
    }
    dir
}

/// Name and labels of each sample with its value; refuses what the format does not allow.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut described = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            described = rest.split(' ').next().unwrap().to_string();
            assert!(rest.len() > described.len() + 1, "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert_eq!(rest, format!("{described} gauge"));
        } else {
            let end = line.find(['{', ' ']).unwrap();
            assert_eq!(&line[..end], described, "{line}");
            assert!(described.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            let mut value_at = end;
            if line[end..].starts_with('{') {
                let quote = line[end..].find("=\"").unwrap() + end + 2;
                let mut escaped = false;
                let close = line[quote..].find(|c| {
                    let closes = c == '"' && !escaped;
                    assert!(!escaped || ['\\', '"', 'n'].contains(&c), "{line}");
                    escaped = c == '\\' && !escaped;
                    closes
                });
                value_at = quote + close.unwrap();
                assert!(line[value_at..].starts_with("\"} "), "{line}");
                value_at += 2;
            }
            let value = line[value_at + 1..].parse().unwrap();
            assert!(
                samples.insert(line[..value_at].to_string(), value).is_none(),
                "{line} twice"
            );
        }
    }
    samples
}

#[test]
fn thresholds_decide_the_status() {
    let dir = chain();
    let d = dir.path();
    says(d, "monitor .", 0);
    says(d, "monitor . --max-depth 3 --max-age 1h --max-delta 20G", 0);
    assert!(says(d, "monitor . --max-depth 2", 3).contains("! depth: "));
    assert!(says(d, "monitor . --max-delta 1K", 3).contains("! delta: "));
    let json: serde_json::Value = serde_json::from_str(&says(d, "monitor . --max-depth 2 --format json", 3)).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["alerts"][0]["check"], "depth");
    assert_eq!(json["deltas"].as_array().unwrap().len(), 2);
    for line in [
        "monitor",
        "monitor . --max-age soon",
        "monitor . --max-growth 1M",
        "monitor . --max-depth x",
    ] {
        assert_eq!(run(d, line).status.code(), Some(2), "{line}");
    }
    says(d, "monitor nowhere", 1);
    // An old checkpoint.
    let vm = std::fs::read_dir(d).unwrap().next().unwrap().unwrap().path();
    let touched = Command::new("touch")
        .args(["-d", "10 days ago"])
        .arg(vm.join("base.vhdx"))
        .status()
        .unwrap();
    assert!(touched.success());
    assert!(says(d, "monitor . --max-age 7d", 3).contains("10 days old"));
    std::fs::remove_file(vm.join("base.vhdx")).unwrap();
    assert!(says(d, "monitor .", 3).contains("! orphan: "));
}

#[test]
fn growth_is_told_from_run_to_run() {
    let dir = chain();
    let d = dir.path();
    let line = "monitor . --state sizes --max-growth 1M";
    assert!(!says(d, line, 0).contains("last run"));
    let vm = std::fs::read_dir(d)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.is_dir())
        .unwrap();
    says(&vm, "write b.avhdx --length 6M --pattern 5", 0);
    assert!(says(d, line, 3).contains("! growth: "));
    assert!(says(d, line, 0).contains("+0 bytes since the last run"));
    std::fs::write(d.join("sizes"), "nonsense").unwrap();
    says(d, line, 1);
}

#[test]
fn prometheus_gets_what_it_can_read() {
    let dir = chain();
    let samples = parse(&says(
        dir.path(),
        "monitor . --max-depth 2 --state sizes --format prometheus",
        3,
    ));
    let file = "{file=\"./v\\\"m\\\\\\n1/b.avhdx\"}";
    assert_eq!(samples[&format!("avhdx_chain_depth_files{file}")], 3.0, "{samples:?}");
    assert!(samples[&format!("avhdx_delta_bytes{file}")] > 0.0);
    assert!(samples[&format!("avhdx_delta_age_seconds{file}")] < 3600.0);
    assert_eq!(samples["avhdx_alerts{check=\"depth\"}"], 1.0);
    assert_eq!(samples["avhdx_files"], 3.0);
    assert_eq!(samples["avhdx_orphans"], 0.0);
}
