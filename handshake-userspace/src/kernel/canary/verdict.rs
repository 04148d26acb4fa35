//! Whether records say of a handshake what is known of it, and if not, in which field.
//!
//! What a newcomer would get wrong: absent is not wrong. A mode or a kernel may not know the acceptor or an ISN,
//! and `doctor` says so; what is there must be true.

use std::net::SocketAddr;

use handshake_common::filter::{Filter, ROLE_CLIENT, ROLE_SERVER};
use rustix::fs::stat;

use super::handshakes::Made;
use crate::model::{
    handshake::Handshake,
    observation::{Act, Observation},
    outcome::{Outcome, Role},
};

/// `tcp_request_sock.snt_synack` is in whole microseconds, rounded down.
const ROUNDING_NS: u64 = 1_000;

/// One handshake that must be among the records.
pub(super) struct Expected<'a> {
    pub(super) made: &'a Made,
    /// Which sides are watched, and who we are.
    pub(super) filter: &'a Filter,
}

impl Expected<'_> {
    pub(super) fn found_in(&self, records: &[Handshake]) -> Result<(), String> {
        let Made { client, server, .. } = *self.made;
        let find = |role, local, remote| {
            let ends = (Some(local), Some(remote));
            records.iter().find(|record| record.role == role && (record.local, record.remote) == ends)
        };
        let mut ends = Vec::new();
        if self.filter.roles & ROLE_CLIENT != 0 {
            let record =
                find(Role::Client, client, server).ok_or_else(|| self.absent(Role::Client, records))?;
            self.is_true(record).map_err(|problem| self.wrong("client", &problem))?;
            ends.push(record);
        }
        if self.filter.roles & ROLE_SERVER != 0 && !self.made.refused {
            let record =
                find(Role::Server, server, client).ok_or_else(|| self.absent(Role::Server, records))?;
            self.is_true(record).map_err(|problem| self.wrong("server", &problem))?;
            ends.push(record);
        }
        if let [one, other] = ends[..] {
            let crossed = [(one.isn.local, other.isn.remote), (one.isn.remote, other.isn.local)];
            for (one, other) in crossed {
                if let (Some(one), Some(other)) = (one, other)
                    && one != other
                {
                    return Err(
                        self.wrong("client", &format!("the ISN {one}, which is {other} at the other end"))
                    );
                }
            }
        }
        Ok(())
    }

    /// A record leaves out a time that contradicts others, so what the hooks reported is looked at itself.
    pub(super) fn times_are_true(&self, observation: &Observation) -> Result<(), String> {
        let Made { client, server, began_ns, ended_ns, .. } = *self.made;
        let ends = observation.act.ends().map(|ends| [ends.local, ends.remote]);
        if ![Some([Some(client), Some(server)]), Some([Some(server), Some(client)])].contains(&ends) {
            return Ok(());
        }
        let times: &[(&str, Option<u64>)] = match &observation.act {
            Act::SynSent(act) => &[("connect()", act.called_ns)],
            Act::LeftSynSent(act) => {
                &[("connect()", act.called_ns), ("the SYN", act.syn_sent_ns), ("the answer", act.answered_ns)]
            }
            Act::ChildQueued(act) | Act::LeftSynReceived(act) => &[
                ("the SYN", act.syn_ns),
                ("the SYN-ACK", act.synack_ns),
                ("the final ACK", act.final_ack_ns),
                ("the queueing", act.queued_ns),
            ],
            _ => &[],
        };
        let from_ns = began_ns.saturating_sub(ROUNDING_NS);
        for (what, time_ns) in times {
            if let Some(time_ns) = time_ns
                && !(from_ns..=ended_ns).contains(time_ns)
            {
                let all = format!("all was between {began_ns} and {ended_ns}");
                return Err(self.wrong("one", &format!("{what} at {time_ns} ns, although {all}")));
            }
        }
        Ok(())
    }

    fn is_true(&self, record: &Handshake) -> Result<(), String> {
        let own_netns = stat("/proc/self/ns/net").ok().map(|file| file.st_ino);
        if let (Some(reported), Some(own)) = (record.netns, own_netns)
            && u64::from(reported) != own
        {
            return Err(format!("the network namespace {reported}, which is {own}"));
        }
        let pid = self.filter.own_pid;
        if let Some(process) = &record.process
            && self.filter.own_pidns_inode == 0
            && process.pid != pid
        {
            return Err(format!("the process {}, which is {pid}", process.pid));
        }
        let right = match record.outcome {
            Outcome::Refused => self.made.refused,
            // Where accept() is not seen, the child was simply closed.
            Outcome::Established | Outcome::NeverAccepted => !self.made.refused,
            _ => false,
        };
        if !right {
            let expected = if self.made.refused { "refused" } else { "established" };
            return Err(format!("the outcome {:?}, which is {expected}", record.outcome));
        }
        let (from_ns, to_ns) = (self.made.began_ns, self.made.ended_ns);
        if record.began_ns < from_ns || record.began_ns > to_ns {
            return Err(format!(
                "the beginning at {} ns, which was between {from_ns} and {to_ns}",
                record.began_ns
            ));
        }
        let whole_ns = to_ns - from_ns;
        // What is agreed on is the kernel's own round trip too; it is at least a microsecond.
        let kernel_ns = record.kernel_rtt_us.map(|rtt_us| u64::from(rtt_us.saturating_sub(1)) * 1_000);
        for took_ns in [record.latency_ns, record.failed_after_ns, record.phases.wire_ns, kernel_ns]
            .into_iter()
            .flatten()
        {
            if took_ns > whole_ns {
                return Err(format!("a time of {took_ns} ns, although all took {whole_ns}"));
            }
        }
        Ok(())
    }

    fn wrong(&self, end: &str, problem: &str) -> String {
        format!("of {} the {end}'s end was reported with {problem}", self.name())
    }

    /// No record has both ends: the one that comes nearest says which is wrong.
    fn absent(&self, role: Role, records: &[Handshake]) -> String {
        let Made { client, server, .. } = *self.made;
        let (local, remote, end) = match role {
            Role::Server => (server, client, "server"),
            Role::Client | Role::Simultaneous => (client, server, "client"),
        };
        let shown = |end: Option<SocketAddr>| end.map_or("nothing".to_owned(), |end| end.to_string());
        let near = records.iter().filter(|record| record.role == role).find(|record| {
            let mine = record.process.as_ref().is_some_and(|process| process.pid == self.filter.own_pid);
            record.local == Some(local) || record.remote == Some(remote) || mine
        });
        match near {
            Some(near) if near.local != Some(local) => {
                self.wrong(end, &format!("the local end {}, which is {local}", shown(near.local)))
            }
            Some(near) => {
                self.wrong(end, &format!("the remote end {}, which is {remote}", shown(near.remote)))
            }
            None => format!("of {} the {end}'s end was not reported at all", self.name()),
        }
    }

    fn name(&self) -> String {
        let what = if self.made.refused { "a refused connection" } else { "a connection" };
        format!("{what} from {} to {} that we made ourselves", self.made.client, self.made.server)
    }
}
