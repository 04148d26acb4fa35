//! The words of an active open: `given_client().syn().wait(MS).syn_ack().expect(...)`.
//!
//! What a newcomer would get wrong: `syn_ack` is also the end of SYN-SENT, for the two are one event.

use handshake_common::tcp::TcpState;

use super::*;

/// A socket that calls connect().
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) script: Script,
    pub(crate) facts: LeftSynSent,
}

script_words!(Client);

/// A client that calls connect() now.
pub(crate) fn given_client() -> Client {
    given_client_at(0xc000)
}

pub(crate) fn given_client_at(address: u64) -> Client {
    let facts = LeftSynSent {
        ends: ends(40_112),
        process: Some(process(1234)),
        called_ns: Some(START),
        syn_sent_ns: None,
        answered_ns: None,
        last_retransmit_ns: None,
        agreed: Agreed::default(),
        sk_err: Some(0),
        sk_err_soft: 0,
        syn_retransmits: 0,
        new_state: TcpState::Closed,
        deferred: false,
        fast_open: false,
        reset_received: false,
        reset_sent: false,
        call_returned: false,
        end_time_unknown: false,
        found_late: false,
        syn_time_lost: false,
        return_is_seen: false,
        mptcp_join: false,
        syn_data: false,
        syn_data_acked: false,
        cookie_follows: false,
        own: false,
    };
    Client { script: Script::new(address), facts }
}

impl Client {
    pub(crate) fn with(mut self, change: impl FnOnce(&mut LeftSynSent)) -> Self {
        change(&mut self.facts);
        self
    }

    pub(crate) fn syn(mut self) -> Self {
        self.facts.syn_sent_ns = Some(self.script.time_ns);
        self.facts.agreed.local_isn = agreed().local_isn;
        self.script.observe(Act::SynSent(SynSent {
            ends: self.facts.ends,
            process: self.facts.process.clone(),
            called_ns: self.facts.called_ns,
            local_isn: self.facts.agreed.local_isn,
            deferred: self.facts.deferred,
            fast_open: self.facts.fast_open,
            own: self.facts.own,
        }));
        self
    }

    /// The SYN leaves, but its event is lost; the kernel side still knows of it.
    pub(crate) fn syn_unseen(mut self) -> Self {
        self.facts.syn_sent_ns = Some(self.script.time_ns);
        self.facts.agreed.local_isn = agreed().local_isn;
        self
    }

    pub(crate) fn syn_retransmit(mut self) -> Self {
        self.facts.syn_retransmits += 1;
        self.facts.last_retransmit_ns = Some(self.script.time_ns);
        let attempt = Some(u32::from(self.facts.syn_retransmits));
        self.script.observe(Act::SynRetransmitted { ends: self.facts.ends, attempt });
        self
    }

    /// The SYN-ACK arrives and establishes, 2 us later.
    pub(crate) fn syn_ack(mut self) -> Self {
        self.facts.answered_ns = Some(self.script.time_ns);
        self.facts.agreed = agreed();
        self.wait(2 * US).leaves(TcpState::Established)
    }

    /// A SYN arrives instead of a SYN-ACK.
    pub(crate) fn crossing_syn(mut self) -> Self {
        self.facts.answered_ns = Some(self.script.time_ns);
        self.facts.agreed = agreed();
        self.leaves(TcpState::SynReceived)
    }

    pub(crate) fn reset(mut self) -> Self {
        self.facts.answered_ns = Some(self.script.time_ns);
        self.facts.reset_received = true;
        self.wait(US).error(ECONNREFUSED)
    }

    /// The socket goes to CLOSED with this error on it.
    pub(crate) fn error(mut self, errno: u32) -> Self {
        self.facts.sk_err = Some(errno);
        self.leaves(TcpState::Closed)
    }

    pub(crate) fn application_closes(self) -> Self {
        self.error(0)
    }

    pub(crate) fn leaves(mut self, new_state: TcpState) -> Self {
        self.facts.new_state = new_state;
        self.script.observe(Act::LeftSynSent(Box::new(self.facts.clone())));
        self
    }

    pub(crate) fn returns(mut self, errno: u32) -> Self {
        self.facts.call_returned = true;
        self.script.observe(Act::ConnectReturned { errno });
        self
    }

    /// The kernel has looked for a cookie in the SYN-ACK.
    pub(crate) fn fast_open_answered(mut self, cookie: Option<bool>) -> Self {
        self.script.observe(Act::FastOpenAnswered { cookie });
        self
    }

    pub(crate) fn fails(mut self, errno: u32) -> Self {
        self.script.observe(Act::ConnectFailed(ConnectFailed {
            ends: self.facts.ends,
            process: self.facts.process.clone(),
            called_ns: self.facts.called_ns,
            errno,
            own: self.facts.own,
        }));
        self
    }

    /// The socket of a simultaneous open leaves SYN-RECEIVED.
    pub(crate) fn leaves_syn_received(mut self, new_state: TcpState, sk_err: u32) -> Self {
        let mut left = half_open();
        left.ends = self.facts.ends;
        left.listener = None;
        left.accept_is_seen = false;
        left.new_state = Some(new_state);
        left.sk_err = Some(sk_err);
        self.script.observe(Act::LeftSynReceived(Box::new(left)));
        self
    }
}
