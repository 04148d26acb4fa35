//! The text of /proc/net/snmp, netstat and netlink, and of mountinfo: hostile until it is parsed.
//!
//! The first two have pairs of lines with the same first word: names, then values. What a newcomer would get wrong: the
//! order and number of names differ between kernels, so a value is found by its name and never by its place; and
//! `MaxConn` is -1, so not every value is a count.

use std::path::PathBuf;

/// One counter of a group (`Tcp`, `TcpExt`). A name that is not there, or there twice, and a value that is no count
/// have no answer.
pub(super) fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut rows = text.lines().filter_map(|line| line.split_once(':').filter(|(first, _)| *first == group));
    let mut found = None;
    while let Some((_, names)) = rows.next() {
        let (_, values) = rows.next()?;
        let values: Vec<&str> = values.split_ascii_whitespace().collect();
        let names: Vec<&str> = names.split_ascii_whitespace().collect();
        if names.len() != values.len() {
            return None;
        }
        for (_, value) in names.iter().zip(values).filter(|(named, _)| **named == name) {
            if found.replace(value.parse().ok()?).is_some() {
                return None;
            }
        }
    }
    found
}

/// The inode of the kernel's own socket for routing messages, from /proc/net/netlink: protocol 0, of no process.
pub(super) fn routing_socket(text: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (protocol, process) = (fields.next()?, fields.next()?);
        let inode = fields.last()?.parse().ok().filter(|inode| *inode != 0);
        inode.filter(|_| protocol == "0" && process == "0")
    })
}

/// The network namespace that a line of mountinfo(5) says is mounted, and where.
pub(super) fn mounted_namespace(line: &str) -> Option<(u32, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    if right.split(' ').next()? != "nsfs" {
        return None;
    }
    let mut fields = left.split(' ').skip(3);
    let netns = fields.next()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    let mount = fields.next()?.replace("\\040", " ");
    // Whatever else the kernel has escaped is no name that anybody gives a namespace.
    (!mount.contains('\\')).then(|| (netns, PathBuf::from(mount)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SNMP: &str = "Ip: Forwarding DefaultTTL\nIp: 2 64\n\
        Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails\n\
        Tcp: 1 200 120000 -1 12 7 3\n\
        Udp: InDatagrams NoPorts\nUdp: 9 1\n";

    #[test]
    fn a_counter_is_found_by_its_name() {
        assert_eq!(counter(SNMP, "Tcp", "ActiveOpens"), Some(12));
        assert_eq!(counter(SNMP, "Tcp", "AttemptFails"), Some(3));
        assert_eq!(counter(SNMP, "Udp", "InDatagrams"), Some(9));
    }

    #[test]
    fn what_a_kernel_lacks_is_absent() {
        for (group, name) in
            [("Tcp", "Estab"), ("TcpExt", "ActiveOpens"), ("Ip", "ActiveOpens"), ("Tcp", "MaxConn")]
        {
            assert_eq!(counter(SNMP, group, name), None, "{group} {name}");
        }
        assert_eq!(counter("", "Tcp", "ActiveOpens"), None);
    }

    #[test]
    fn what_makes_no_sense_is_absent() {
        for text in [
            "Tcp: ActiveOpens\n",
            "Tcp: ActiveOpens PassiveOpens\nTcp: 1\n",
            "Tcp: ActiveOpens\nTcp: many\n",
            "Tcp: ActiveOpens\nTcp: 18446744073709551616\n",
            "Tcp: ActiveOpens ActiveOpens\nTcp: 1 2\n",
            "Tcp: ActiveOpens\nTcp: 1\nTcp: ActiveOpens\nTcp: 2\n",
        ] {
            assert_eq!(counter(text, "Tcp", "ActiveOpens"), None, "{text}");
        }
    }

    #[test]
    fn a_namespace_is_known_by_its_routing_socket() {
        let netlink = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            0000000000000000 0   431        80000551 0        0        0     2        0        14007   \n\
            0000000000000000 4   0          00000000 0        0        0     2        0        3081    \n\
            0000000000000000 0   0          00000000 0        0        0     2        0        1031    \n";
        assert_eq!(routing_socket(netlink), Some(1031));
        assert_eq!(routing_socket("sk Eth Pid Inode\nx 0 0 0\nx 0\n"), None);
    }

    #[test]
    fn a_mounted_network_namespace_is_found() {
        let line = "151 30 0:4 net:[4026532281] /run/netns/a\\040b rw shared:82 - nsfs nsfs rw";
        assert_eq!(mounted_namespace(line), Some((4_026_532_281, "/run/netns/a b".into())));
        for line in [
            "151 30 0:4 mnt:[4026532281] /run/x rw - nsfs nsfs rw",
            "151 30 0:4 net:[4026532281] /run/x rw - tmpfs nsfs rw",
            "151 30 0:4 net:[x] /run/x rw - nsfs nsfs rw",
            "151 30 0:4 net:[7",
        ] {
            assert_eq!(mounted_namespace(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>(), line in "[a-zA-Z0-9 :\\-\\[\\]\n]{0,200}") {
            let _ = (counter(&text, "Tcp", "ActiveOpens"), counter(&line, "Tcp", "ActiveOpens"));
            let _ = (mounted_namespace(&text), mounted_namespace(&line));
            let _ = (routing_socket(&text), routing_socket(&line));
        }

        #[test]
        fn every_counter_of_a_kernel_is_read(
            rows in proptest::collection::btree_map("[A-Za-z0-9]{1,20}", any::<u64>(), 1..40),
            before in "[A-Z][a-z]{0,6}",
        ) {
            prop_assume!(before != "Tcp");
            let names: Vec<&str> = rows.keys().map(String::as_str).collect();
            let values: Vec<String> = rows.values().map(u64::to_string).collect();
            let text = format!(
                "{before}: x\n{before}: 1\nTcp: {}\nTcp: {}\n",
                names.join(" "),
                values.join(" ")
            );
            for (name, value) in &rows {
                prop_assert_eq!(counter(&text, "Tcp", name), Some(*value));
            }
        }

        #[test]
        fn a_text_that_is_cut_off_gives_what_is_whole_or_nothing(cut in 0..SNMP.len()) {
            let said = counter(&SNMP[..cut], "Tcp", "ActiveOpens");
            prop_assert!(said.is_none() || said == Some(12), "{:?}", said);
        }
    }
}
