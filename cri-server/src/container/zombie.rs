//! How a process has ended that its parent has not waited for: the parent may be stopped, and the kernel still tells.

/// Exit code of a process of which every thread has ended, and which nobody has reaped; a signal is 128 and its number.
/// None: it lives, or it is gone. Blocking.
pub fn exit_code(pid: i32) -> Option<i32> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 (state), 20 (threads) and 52 (status as wait(2) gives it) of proc_pid_stat(5). The first thread is a zombie also
/// where others of the process go on.
fn parse(stat: &str) -> Option<i32> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    if field(3)? != "Z" || field(20)?.parse::<u32>().ok()? > 1 {
        return None;
    }
    let status: i32 = field(52)?.parse().ok()?;
    Some(if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tells_code_and_signal_of_who_is_not_reaped() {
        assert_eq!(exit_code(i32::try_from(std::process::id()).unwrap()), None);
        for (script, code) in [("exit 3", 3), ("kill -TERM $$", 143)] {
            let mut child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while exit_code(pid) != Some(code) {
                assert!(std::time::Instant::now() < end, "{script}: {:?}", exit_code(pid));
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            child.wait().unwrap();
            assert_eq!(exit_code(pid), None);
        }
    }

    #[test]
    fn a_process_whose_first_thread_alone_has_ended_lives() {
        let stat = |threads: u32| {
            format!("7 (a) b) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 9{}", " 0".repeat(29) + " 256")
        };
        assert_eq!((parse(&stat(1)), parse(&stat(2))), (Some(1), None));
    }
}
