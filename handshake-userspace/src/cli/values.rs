//! Values that people type: durations, sizes, networks, namespaces, command names.
//!
//! Every refusal names what would have been accepted. What a newcomer would get wrong: a bare number is no
//! duration. Half of the tools mean seconds by it and half milliseconds, so we ask for the unit.

use std::{ffi::OsString, net::IpAddr, os::unix::fs::MetadataExt, path::Path, time::Duration};

use ipnet::IpNet;

const DURATION_HINT: &str = "a duration is a number and a unit: 50ms, 1.5s, 2m, 1h30m (ns, us, ms, s, m, h)";

/// `50ms`, `1.5s`, `1m30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return Err(DURATION_HINT.to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DURATION_HINT)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| DURATION_HINT)?;
        let seconds = match unit.trim() {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(DURATION_HINT.to_owned()),
        };
        total += number * seconds;
        rest = after.trim_start();
    }
    // More than a century is more than a u64 of nanoseconds should be asked to hold.
    if total > 3.0e9 {
        return Err("that is more than a hundred years".to_owned());
    }
    Duration::try_from_secs_f64(total).map_err(|_| DURATION_HINT.to_owned())
}

/// A duration that ends something must let it begin.
pub(super) fn longer_than_zero(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("it must be longer than 0".to_owned()) } else { Ok(duration) }
}

/// A power of two of bytes, with KiB, MiB or GiB.
pub(super) fn ring_bytes(text: &str) -> Result<u32, String> {
    const HINT: &str = "the size of the ring buffer is a power of two from 64KiB to 1GiB, for instance 4MiB";
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit: u64 = match unit.trim() {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return Err(HINT.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| HINT)?;
    let bytes = number.checked_mul(unit).and_then(|bytes| u32::try_from(bytes).ok()).ok_or(HINT)?;
    if bytes.is_power_of_two() && (64 << 10..=1 << 30).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(HINT.to_owned())
    }
}

/// A network or a single address, IPv4-mapped ones folded to IPv4.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    const HINT: &str = "a network is written 10.0.0.0/8, 2001:db8::/32, or as one address";
    let text = text.trim();
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| HINT)?,
    };
    Ok(match (network, network.addr().to_canonical()) {
        (IpNet::V6(mapped), IpAddr::V4(address)) if mapped.prefix_len() >= 96 => {
            ipnet::Ipv4Net::new(address, mapped.prefix_len() - 96).map_err(|_| HINT)?.trunc().into()
        }
        _ => network.trunc(),
    })
}

/// The inode number of a network namespace, given as such, as a path, or as a name of `ip netns`.
pub(super) fn netns(text: &str) -> Result<u32, String> {
    if let Ok(inode) = text.parse::<u32>()
        && inode != 0
    {
        return Ok(inode);
    }
    let by_name = Path::new("/run/netns").join(text);
    let path = if text.contains('/') { Path::new(text) } else { by_name.as_path() };
    let metadata = std::fs::metadata(path).map_err(|error| {
        format!(
            "a namespace is its inode number, a path such as /proc/1/ns/net, or a name of `ip netns`; {}: {error}",
            path.display()
        )
    })?;
    u32::try_from(metadata.ino()).map_err(|_| format!("{} is no namespace", path.display()))
}

/// A command name; the kernel keeps 15 bytes of it, so the rest is not compared.
pub(super) fn comm(text: &str) -> Result<OsString, String> {
    if text.is_empty() {
        return Err("a command name is what `ps -o comm` shows, up to 15 bytes".to_owned());
    }
    Ok(OsString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, nanoseconds) in [
            ("50ms", 50_000_000),
            ("1.5s", 1_500_000_000),
            ("2m", 120_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1m 30s", 90_000_000_000),
            ("250us", 250_000),
            ("250 µs", 250_000),
        ] {
            assert_eq!(duration(text).unwrap().as_nanos(), nanoseconds, "{text}");
        }
        for text in ["", "5", "ms", "-1s", "1..2s", "1x", "1e9s", "999999999999h", "."] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_ring_is_a_power_of_two() {
        assert_eq!(ring_bytes("4MiB"), Ok(4 << 20));
        assert_eq!(ring_bytes("65536"), Ok(65536));
        for text in ["", "3MiB", "4MB", "8GiB", "4096", "99999999999999999999"] {
            assert!(ring_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_namespace_is_found_by_path() {
        let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(netns("/proc/self/ns/net").map(u64::from), Ok(inode));
        assert_eq!(netns("4026531840"), Ok(4_026_531_840));
    }
}
