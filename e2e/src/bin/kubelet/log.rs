//! Logs: written by the runtime, turned over and read by the kubelet.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cove_e2e::Outcome;
use serde_json::json;

use crate::ground::{Ground, IDLE, Trial};

cases!(turns_logs_over_while_they_are_written, writes_both_streams);

/// Lines a second of the writer, and how much of its log a kubelet keeps: `Node::configuration`.
const WRITER: &str = "trap 'exit 0' TERM; n=0
    while :; do n=$((n+1)); echo line $n of many that fill the log until it is turned over; test $((n % 100)) = 0 && sleep 0.05; done";

/// The text of a log file; the older ones are compressed.
fn text(path: &Path) -> Outcome<String> {
    let mut text = String::new();
    let mut file = File::open(path)?;
    if path.extension().is_some_and(|end| end == "gz") {
        flate2::read::GzDecoder::new(file).read_to_string(&mut text)?;
    } else {
        file.read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Messages of a log without the parts of the format: TIME STREAM TAG MESSAGE.
fn messages(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect()
}

fn turns_logs_over_while_they_are_written(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("writer", WRITER, json!({}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("writer")?;
        let files = ground.until("three files of the log", || {
            let files = ground.log_files("writer", "main")?;
            Ok((files.len() >= 3).then_some(()))
        });
        files?;
        // It ends, so that what is read does not change.
        ground.node.take_away("writer")?;
        let kept = tempfile::Builder::new().prefix("cove-log-").tempdir()?;
        ground.until("it to end", || {
            // Links outlive the names that the kubelet removes.
            for path in ground.log_files("writer", "main")? {
                let Ok(file) = fs::metadata(&path) else { continue };
                let name = path.file_name().ok_or("a log without a name")?.to_string_lossy();
                let to = kept.path().join(format!("{}-{name}", file.ino()));
                match fs::hard_link(&path, &to) {
                    Err(error) if !to.exists() && path.exists() => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(ground.look("writer")?.is_none().then_some(()))
        })?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(kept.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "tmp") {
                continue;
            }
            for message in messages(&text(&path)?) {
                numbers.push(
                    message.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).ok_or("a torn line")?,
                );
            }
        }
        numbers.sort_unstable();
        // A file and its compressed form hold the same.
        numbers.dedup();
        let (first, last) = (numbers.first().ok_or("an empty log")?, numbers.last().ok_or("an empty log")?);
        ensure_eq!(last - first + 1, u64::try_from(numbers.len())?);
        ensure!(numbers.len() > 3000, "only {} lines", numbers.len());
        Ok(())
    })
}

fn writes_both_streams(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("streams", &format!("echo out; echo err >&2; {IDLE}"), json!({}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("streams")?;
        let files = ground.log_files("streams", "main")?;
        let path = files.last().ok_or("no log")?;
        let text = ground.until("its lines", || {
            let text = fs::read_to_string(path)?;
            Ok((text.lines().count() == 2).then_some(text))
        })?;
        for (stream, message) in [("stdout", "out"), ("stderr", "err")] {
            let end = format!(" {stream} F {message}");
            ensure!(text.lines().any(|line| line.ends_with(&end)), "{text}");
        }
        // Log shippers find it here.
        let id = ground.id("streams", "main")?;
        let link = format!("/var/log/containers/streams-{}_default_main-{id}.log", crate::node::NAME);
        ensure_eq!(fs::read_to_string(link)?, text);
        Ok(())
    })
}
