//! The command line, twice: as typed (clap's types, which never leave this folder) and as meant (`plan`).
//!
//! What a newcomer would get wrong: every option is global, so `handshake --json replay FILE` and
//! `handshake replay FILE --json` mean the same; an option that means nothing for a command is refused when
//! the plan is made, not ignored.

pub mod plan;
mod typed;
mod values;

use std::ffi::OsString;

use clap::{CommandFactory, Parser};

use self::plan::Plan;

/// Reads the arguments, the program's name first. Ends the program with code 2 and a message when they make
/// no sense, and with 0 for `--help` and `--version`.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Plan {
    match parse(arguments) {
        Ok(plan) => plan,
        Err(error) => error.exit(),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Plan, clap::Error> {
    let typed = typed::Arguments::try_parse_from(arguments)?;
    Plan::new(typed).map_err(|problem| {
        typed::Arguments::command().error(clap::error::ErrorKind::ValueValidation, problem)
    })
}

#[cfg(test)]
mod tests {
    use super::{plan::Command, *};

    fn parsed(line: &str) -> Result<Plan, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn options_mean_the_same_before_and_after_the_command() {
        for line in [
            "handshake --json -P 443,80 -n 3",
            "handshake trace --json -P 443,80 -n 3",
            "handshake -P 443 -P 80 --json trace -n 3",
            "handshake --json trace -P 443 --port 80 --count 3",
        ] {
            let plan = parsed(line).unwrap();
            assert!(matches!(plan.command, Command::Trace), "{line}");
            assert!(plan.output.json, "{line}");
            assert_eq!(plan.filter.ports, [443, 80], "{line}");
            assert_eq!(plan.count, Some(3), "{line}");
            assert_eq!(plan.trace.filter.ports, 2, "{line}");
        }
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_accepted() {
        for (line, words) in [
            ("handshake --slow 50", ["50", "50ms"]),
            ("handshake --slow fast", ["fast", "50ms"]),
            ("handshake --duration 0s", ["0s", "longer than 0"]),
            ("handshake -P 0", ["0", "1"]),
            ("handshake -P 70000", ["70000", "65535"]),
            ("handshake --remote 10.0.0.0/40", ["10.0.0.0/40", "10.0.0.0/8"]),
            ("handshake --netns no-such-netns", ["no-such-netns", "inode"]),
            ("handshake --role peer", ["peer", "client"]),
            ("handshake --attach magic", ["magic", "fentry"]),
            ("handshake --ring-bytes 1000", ["1000", "power of two"]),
            ("handshake -n 0", ["0", "1"]),
            ("handshake --comm=", ["--comm", "name"]),
            ("handshake replay x --attach kprobe", ["--attach", "recording"]),
            ("handshake doctor --port 80", ["--port", "doctor"]),
            ("handshake --cgroup /no/such/cgroup", ["--cgroup /no/such/cgroup", "cgroup"]),
            (
                "handshake --cgroup / --cgroup / --cgroup / --cgroup / --cgroup / --cgroup / --cgroup / --cgroup / --cgroup /",
                ["8 times", "is 9"],
            ),
            ("handshake doctor --cgroup /", ["--cgroup", "doctor"]),
            ("handshake frobnicate", ["frobnicate", "handshake"]),
        ] {
            let message = parsed(line).expect_err(line);
            for word in words {
                assert!(message.contains(word), "{line}: {word:?} is missing in: {message}");
            }
        }
    }

    #[test]
    fn what_the_kernel_cannot_hold_is_filtered_by_us_alone() {
        let plan = parsed("handshake -P 1,2,3,4,5,6,7,8,9 --remote ::ffff:10.1.2.3 -4").unwrap();
        assert_eq!(plan.trace.filter.ports, 0);
        assert_eq!(plan.filter.ports.len(), 9);
        assert_eq!(plan.filter.networks, ["10.1.2.3/32".parse().unwrap()]);
        assert_eq!(plan.trace.filter.network[0].address, [0, 0xffff_0a01_0203]);
        assert_eq!(plan.trace.filter.network[0].mask, [u64::MAX, u64::MAX]);
        assert_eq!(plan.trace.filter.families, handshake_common::filter::FAMILY_V4);
    }

    #[test]
    fn the_command_line_is_consistent() {
        typed::Arguments::command().debug_assert();
    }
}
