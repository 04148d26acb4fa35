//! What passed a link, as tshark decodes it, and the handshakes that can be read from it.
//!
//! Nothing of ours is used here: neither our decoding nor our notion of an outcome. What a reader would get
//! wrong: the end of a handshake on the wire is a segment. What an application or a timer ends leaves none.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

const SYN: u16 = 0x02;
const RST: u16 = 0x04;
const ACK: u16 = 0x10;

/// How long a CPU may take for a segment that it has begun with; an emulated one takes hundreds of times longer than
/// any other.
const AT_ONCE_NS: i64 = 2_000_000;

/// One TCP segment.
pub struct Segment {
    pub time_ns: i64,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub flags: u16,
    pub sequence: u32,
    pub acknowledged: u32,
}

/// Which handshake: its ends, the client's first, and the client's ISN, for ports are used again. And which of
/// those that are so alike: a SYN that was sent again can arrive when all is over, and begin another handshake.
pub type Key = (SocketAddr, SocketAddr, u32, usize);

/// The segment that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client acknowledged the SYN-ACK.
    FinalAck,
    /// The server answered the SYN with a RST.
    Refusal,
    /// The client answered the SYN-ACK with a RST.
    Reset,
}

/// A handshake as it passed one link.
#[derive(Debug)]
pub struct OnTheWire {
    pub first_syn_ns: i64,
    /// SYNs and SYN-ACKs until its end.
    pub syns: u64,
    pub syn_acks: u64,
    /// The first SYN-ACK: when, and the server's ISN.
    pub syn_ack: Option<(i64, u32)>,
    pub end: Option<(End, i64)>,
    /// The client's ACK and a RST of its arrived together: two CPUs may work on them at once.
    pub raced: bool,
    /// A SYN after the end, which the server may take for a new one.
    late_syn_ns: Option<i64>,
}

impl OnTheWire {
    /// Whether its SYN came once more, behind the final ACK and so close to it that either may have been first to TCP.
    pub fn is_raced_by_a_syn(&self) -> bool {
        match (self.end, self.late_syn_ns) {
            (Some((_, ended_ns)), Some(syn_ns)) => (syn_ns - ended_ns).abs() < AT_ONCE_NS,
            _ => false,
        }
    }

    fn begun_by_syn(first_syn_ns: i64) -> Self {
        OnTheWire {
            first_syn_ns,
            syns: 1,
            syn_acks: 0,
            syn_ack: None,
            end: None,
            raced: false,
            late_syn_ns: None,
        }
    }

    fn answered(&mut self, time_ns: i64, isn: u32) {
        self.syn_acks += 1;
        self.syn_ack.get_or_insert((time_ns, isn));
    }
}

/// Decodes a capture.
pub fn decode(file: &Path) -> Vec<Segment> {
    const FIELDS: [&str; 10] = [
        "frame.time_epoch",
        "ip.src",
        "ipv6.src",
        "tcp.srcport",
        "ip.dst",
        "ipv6.dst",
        "tcp.dstport",
        "tcp.flags",
        "tcp.seq_raw",
        "tcp.ack_raw",
    ];
    let output = Command::new("tshark")
        .arg("-r")
        .arg(file)
        // tshark's own analysis is neither needed nor asked.
        .args([
            "-n",
            "-o",
            "tcp.analyze_sequence_numbers:FALSE",
            "-Y",
            "tcp and not icmp and not icmpv6",
            "-T",
            "fields",
        ])
        .args(FIELDS.iter().flat_map(|field| ["-e", field]))
        .output()
        .expect("tshark can be run");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark: {problem}");
    let text = String::from_utf8(output.stdout).expect("tshark writes text");
    // In the order of the file, which is that in which TCP gets them. Their times are those at which they were
    // queued for a CPU, and two CPUs don't work off their queues in step.
    text.lines()
        .map(|line| segment(line).unwrap_or_else(|| panic!("tshark says of a segment: {line:?}")))
        .collect()
}

fn segment(line: &str) -> Option<Segment> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [time, v4, v6, port, to_v4, to_v6, to_port, flags, sequence, acknowledged] = fields[..] else {
        return None;
    };
    let (seconds, fraction) = time.split_once('.')?;
    // The fields of the other version of IP are empty.
    let end = |v4: &str, v6: &str, port: &str| {
        let address: IpAddr = if v6.is_empty() { v4.parse().ok()? } else { v6.parse().ok()? };
        Some(SocketAddr::new(address, port.parse().ok()?))
    };
    Some(Segment {
        time_ns: seconds.parse::<i64>().ok()? * 1_000_000_000
            + format!("{fraction:0<9}").parse::<i64>().ok()?,
        from: end(v4, v6, port)?,
        to: end(to_v4, to_v6, to_port)?,
        flags: u16::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?,
        sequence: sequence.parse().ok()?,
        acknowledged: acknowledged.parse().ok()?,
    })
}

/// Every handshake of which a SYN passed.
pub fn handshakes(segments: &[Segment]) -> BTreeMap<Key, OnTheWire> {
    let mut found: BTreeMap<Key, OnTheWire> = BTreeMap::new();
    let mut latest: HashMap<(SocketAddr, SocketAddr), Key> = HashMap::new();
    for segment in segments {
        let Segment { time_ns, from, to, flags, sequence, acknowledged } = *segment;
        if flags & (SYN | ACK) == SYN {
            match latest.get(&(from, to)).filter(|key| key.2 == sequence).and_then(|key| found.get_mut(key)) {
                Some(one) if one.end.is_none() => one.syns += 1,
                Some(one) => one.late_syn_ns = Some(time_ns),
                None => {
                    let key = (from, to, sequence, 0);
                    latest.insert((from, to), key);
                    found.insert(key, OnTheWire::begun_by_syn(time_ns));
                }
            }
            continue;
        }
        let (key, by_client) = match (latest.get(&(from, to)), latest.get(&(to, from))) {
            (Some(key), _) => (*key, true),
            (None, Some(key)) => (*key, false),
            (None, None) => continue,
        };
        let Some(one) = found.get_mut(&key) else { continue };
        let first_byte = key.2.wrapping_add(1);
        let answers_syn = !by_client && acknowledged == first_byte;
        if answers_syn && flags & (SYN | ACK) == SYN | ACK {
            let is_another = one.syn_ack.is_none_or(|(_, isn)| isn != sequence);
            if let Some(late_syn_ns) = one.late_syn_ns.filter(|_| is_another) {
                let key = (key.0, key.1, key.2, key.3 + 1);
                let again = OnTheWire::begun_by_syn(late_syn_ns);
                latest.insert((to, from), key);
                found.entry(key).or_insert(again).answered(time_ns, sequence);
            } else if one.end.is_none() {
                one.answered(time_ns, sequence);
            }
            continue;
        }
        if let Some((end, ended_ns)) = one.end {
            let other = if flags & RST != 0 { End::Reset } else { End::FinalAck };
            one.raced |= by_client && end != other && (time_ns - ended_ns).abs() < AT_ONCE_NS;
            continue;
        }
        one.end = match one.syn_ack {
            None if answers_syn && flags & RST != 0 => Some((End::Refusal, time_ns)),
            Some(_) if by_client && flags & RST != 0 && sequence == first_byte => Some((End::Reset, time_ns)),
            Some((_, isn))
                if by_client && flags & (RST | ACK) == ACK && acknowledged == isn.wrapping_add(1) =>
            {
                Some((End::FinalAck, time_ns))
            }
            _ => None,
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 40000);
    const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 80);

    /// `(by the client, flags, sequence number, acknowledged)`, a nanosecond apart.
    fn read(segments: &[(bool, u16, u32, u32)]) -> Vec<OnTheWire> {
        let mut time_ns = 0;
        let segments: Vec<Segment> = segments
            .iter()
            .map(|&(by_client, flags, sequence, acknowledged)| {
                time_ns += 1;
                let (from, to) = if by_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
                Segment { time_ns, from, to, flags, sequence, acknowledged }
            })
            .collect();
        handshakes(&segments).into_values().collect()
    }

    #[test]
    fn segments_sent_again_belong_to_the_handshake_until_its_end() {
        let seen = read(&[
            (true, SYN, 7, 0),
            (true, SYN, 7, 0),
            (false, SYN | ACK, 90, 8),
            (false, SYN | ACK, 90, 8),
            (true, ACK, 8, 91),
            (false, SYN | ACK, 90, 8),
            (true, ACK | RST, 8, 91),
        ]);
        let [one] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!((one.first_syn_ns, one.syns, one.syn_acks), (1, 2, 2));
        assert_eq!((one.syn_ack, one.end), (Some((3, 90)), Some((End::FinalAck, 5))));
    }

    #[test]
    fn a_segment_has_the_addresses_of_its_version_of_ip() {
        let v6 = segment("9.5\t\t2001:db8::1\t40000\t\t2001:db8::2\t80\t0x0012\t7\t8").expect("a segment");
        assert_eq!((v6.from.to_string(), v6.time_ns), ("[2001:db8::1]:40000".to_owned(), 9_500_000_000));
        let v4 = segment("9.5\t192.0.2.1\t\t40000\t198.51.100.1\t\t80\t0x0002\t7\t0").expect("a segment");
        assert_eq!((v4.from, v4.to, v4.flags), (CLIENT, SERVER, SYN));
        assert!(segment("9.5\t\t\t40000\t\t\t80\t0x0002\t7\t0").is_none());
    }

    #[test]
    fn a_rst_is_a_refusal_or_a_reset_by_who_sends_it_and_when() {
        let refused = read(&[(true, SYN, 7, 0), (false, RST | ACK, 0, 8)]);
        assert_eq!(refused[0].end, Some((End::Refusal, 2)));
        let reset =
            read(&[(true, SYN, 7, 0), (false, SYN | ACK, 90, 8), (true, RST, 8, 0), (true, ACK, 8, 91)]);
        assert_eq!(reset[0].end, Some((End::Reset, 3)));
    }

    #[test]
    fn a_syn_that_arrives_when_all_is_over_begins_another_if_it_is_answered() {
        let first = [(true, SYN, 7, 0), (false, SYN | ACK, 90, 8), (true, ACK, 8, 91), (true, SYN, 7, 0)];
        assert_eq!(read(&first).len(), 1);
        let again = [(false, SYN | ACK, 500, 8), (true, RST, 8, 0)];
        let seen = read(&[&first[..], &again[..]].concat());
        let [one, other] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!((one.end, one.syns), (Some((End::FinalAck, 3)), 1));
        assert_eq!((other.first_syn_ns, other.syn_ack), (4, Some((5, 500))));
        assert_eq!(other.end, Some((End::Reset, 6)));
    }

    #[test]
    fn a_port_that_is_used_again_is_another_handshake() {
        let seen = read(&[(true, SYN, 7, 0), (false, RST | ACK, 0, 8), (true, SYN, 900, 0)]);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].end, None);
    }
}
