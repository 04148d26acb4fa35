//! The tracker's tests: scripts of acts, named as TCP facts.
//!
//! `script` lets a client or a listener act in TCP's words and time; the other files expect records. What a
//! newcomer would get wrong: a script only lists observations; they run when something is expected.

mod accept_queue;
mod client_failures;
mod clients;
mod drops;
mod limits;
mod order_and_loss;
mod properties;
mod raced;
mod script;
mod second_account;
mod servers;
mod simultaneous;
mod suspends;
mod told_once;
