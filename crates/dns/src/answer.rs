//! A packet and a zone make a reply: everything about DNS that needs no I/O.

use crate::zone::{Data, Lookup, Zone};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// Seconds that anybody may keep an answer: short, because pods come and go.
const TTL_S: u32 = 5;
/// A UDP reply without EDNS, and the least that EDNS may offer.
const PLAIN_UDP_BYTES: u16 = 512;
/// The most that we send over UDP: fits every path without fragments.
const EDNS_UDP_BYTES: u16 = 1232;
const HEADER_BYTES: usize = 12;
/// A query carries at most an OPT and a signature besides its question.
const MAX_ADDITIONALS: u16 = 4;
/// Longest chain of aliases that is followed inside the zone.
const MAX_ALIASES: usize = 8;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What to do with a packet.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send this.
    Reply(Vec<u8>),
    /// The name is not ours: ask an upstream, on behalf of this request.
    Forward(Request),
    /// An alias of ours points to a foreign name: ask an upstream for that and complete the answer.
    Chase(Box<Message>, Request, Query),
    /// Not a query, or too damaged to answer.
    Drop,
}

/// What is needed to answer a request later.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    head: Box<Message>,
    transport: Transport,
}

/// Answers a packet as far as the zone can.
pub(crate) fn answer(zone: &Zone, packet: &[u8], transport: Transport) -> Outcome {
    let Some(counts) = header_counts(packet) else { return Outcome::Drop };
    let [questions, answers, authorities, additionals] = counts;
    let plausible = questions == 1 && answers == 0 && authorities == 0 && additionals <= MAX_ADDITIONALS;
    let parsed = if plausible { Message::from_vec(packet).ok() } else { None };
    let Some(message) = parsed else { return form_error(packet, transport) };
    let request = Request { head: Box::new(message), transport };
    if request.head.metadata.op_code != OpCode::Query {
        return Outcome::Reply(request.failure(ResponseCode::NotImp));
    }
    if request.head.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Outcome::Reply(request.failure(ResponseCode::BADVERS));
    }
    let Some(query) = request.head.queries.first().cloned() else { return Outcome::Drop };
    let refused = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if refused || !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Outcome::Reply(request.failure(ResponseCode::Refused));
    }
    answer_query(zone, request, &query)
}

fn answer_query(zone: &Zone, request: Request, query: &Query) -> Outcome {
    let mut reply = request.reply(ResponseCode::NoError);
    reply.metadata.authoritative = true;
    let wanted = query.query_type();
    let mut owner = query.name().clone();
    for _ in 0..MAX_ALIASES {
        let (origin, data) = match zone.lookup(&key(&owner)) {
            Lookup::Foreign if reply.answers.is_empty() => return Outcome::Forward(request),
            Lookup::Foreign => {
                let next = Query::query(owner, wanted);
                return Outcome::Chase(Box::new(reply), request, next);
            }
            Lookup::Missing(origin) => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.authorities.extend(soa(zone, origin));
                break;
            }
            Lookup::Found(origin, data) => (origin, data),
        };
        let alias = data.iter().find_map(|d| if let Data::Cname(target) = d { name(target) } else { None });
        if let Some(target) = alias {
            let done = matches!(wanted, RecordType::CNAME | RecordType::ANY);
            reply.answers.push(Record::from_rdata(owner, TTL_S, RData::CNAME(CNAME(target.clone()))));
            if done {
                break;
            }
            owner = target;
            continue;
        }
        add_found(zone, &mut reply, (&owner, wanted), origin, data);
        break;
    }
    Outcome::Reply(request.encode(&reply))
}

/// The records of a name that exists, or the proof that it has none of the wanted type.
fn add_found(
    zone: &Zone,
    reply: &mut Message,
    (owner, wanted): (&Name, RecordType),
    origin: &str,
    data: &[Data],
) {
    let mut records: Vec<Record> = data.iter().filter_map(|d| record(owner, d)).collect();
    if key(owner) == origin {
        records.extend(soa(zone, origin));
        records.extend(name_server(origin));
    }
    match wanted {
        // RFC 8482: one record is answer enough.
        RecordType::ANY => records.truncate(1),
        wanted => records.retain(|record| record.record_type() == wanted),
    }
    if records.is_empty() {
        reply.authorities.extend(soa(zone, origin));
        return;
    }
    // Clients that take the first address spread by the query's own random number.
    let turn = usize::from(reply.metadata.id) % records.len();
    records.rotate_left(turn);
    for target in
        data.iter().filter_map(|d| if let Data::Srv { target, .. } = d { Some(target) } else { None })
    {
        if let (RecordType::SRV, Lookup::Found(_, data), Some(owner)) =
            (wanted, zone.lookup(target), name(target))
        {
            let addresses = data.iter().filter(|d| matches!(d, Data::A(_) | Data::Aaaa(_)));
            reply.additionals.extend(addresses.filter_map(|d| record(&owner, d)));
        }
    }
    reply.answers.extend(records);
}

impl Request {
    /// The request as it is to go to an upstream, under another number.
    pub(crate) fn upstream_query(&self, id: u16) -> Option<Vec<u8>> {
        let mut query = Message::clone(&self.head);
        query.metadata.id = id;
        query.to_vec().ok()
    }

    /// A query of our own on behalf of this request.
    pub(crate) fn query_for(&self, id: u16, query: Query) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.push(query);
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_UDP_BYTES);
        message.edns = Some(edns);
        message.to_vec().ok()
    }

    /// An upstream's reply, under the number that the client knows.
    pub(crate) fn relay(&self, mut reply: Vec<u8>) -> Vec<u8> {
        if let Some(id) = reply.get_mut(..2) {
            id.copy_from_slice(&self.head.metadata.id.to_be_bytes());
        }
        reply
    }

    /// Completes an answer that began with our alias by what an upstream said about its target.
    pub(crate) fn complete(&self, mut reply: Message, upstream: &[u8]) -> Vec<u8> {
        let Ok(rest) = Message::from_vec(upstream) else { return self.failure(ResponseCode::ServFail) };
        reply.answers.extend(rest.answers);
        reply.metadata.response_code = rest.metadata.response_code;
        reply.metadata.truncation |= rest.metadata.truncation;
        self.encode(&reply)
    }

    /// A reply that carries only an error.
    pub(crate) fn failure(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(&self.reply(code))
    }

    /// How the request came.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// The question, for logs.
    pub(crate) fn question(&self) -> String {
        self.head.queries.first().map(ToString::to_string).unwrap_or_default()
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let asked = &self.head.metadata;
        let mut reply = Message::new(asked.id, MessageType::Response, asked.op_code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.queries = self.head.queries.clone();
        if self.head.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_UDP_BYTES);
            edns.set_rcode_high(code.high());
            reply.edns = Some(edns);
        }
        reply
    }

    /// Encodes a reply within what the client can take; too much for it sets the truncation bit.
    fn encode(&self, reply: &Message) -> Vec<u8> {
        let offered = self.head.edns.as_ref().map_or(PLAIN_UDP_BYTES, Edns::max_payload);
        let limit = match self.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => offered.clamp(PLAIN_UDP_BYTES, EDNS_UDP_BYTES),
        };
        encode(reply, limit).unwrap_or_else(|| {
            let mut bare = self.reply(ResponseCode::ServFail);
            bare.edns = None;
            encode(&bare, limit).unwrap_or_default()
        })
    }
}

fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

/// The four counts of a query's header; `None` for what is too short or not a query.
fn header_counts(packet: &[u8]) -> Option<[u16; 4]> {
    let header = packet.first_chunk::<HEADER_BYTES>()?;
    let is_response = header[2] & 0x80 != 0;
    let at = |i: usize| u16::from_be_bytes([header[i], header[i + 1]]);
    (!is_response).then(|| [at(4), at(6), at(8), at(10)])
}

/// FORMERR from nothing but the number of the packet.
fn form_error(packet: &[u8], transport: Transport) -> Outcome {
    let id = packet.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id));
    let head = Box::new(Message::new(id, MessageType::Query, OpCode::Query));
    Outcome::Reply(Request { head, transport }.failure(ResponseCode::FormErr))
}

/// A name as the zone spells it.
fn key(name: &Name) -> String {
    let mut text = name.to_lowercase().to_ascii();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// A fully qualified name; `None` for what cannot be one.
fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn record(owner: &Name, data: &Data) -> Option<Record> {
    let data = match data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Srv { weight, port, target } => RData::SRV(SRV::new(0, *weight, *port, name(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
    };
    Some(Record::from_rdata(owner.clone(), TTL_S, data))
}

fn soa(zone: &Zone, origin: &str) -> Option<Record> {
    let (server, person) = (name(&format!("ns.dns.{origin}"))?, name(&format!("hostmaster.{origin}"))?);
    // Refresh, retry and expire are for secondaries, which do not exist; the minimum is how long "no" may be kept.
    let soa = SOA::new(server, person, zone.serial(), 7200, 1800, 86_400, TTL_S);
    Some(Record::from_rdata(name(origin)?, TTL_S, RData::SOA(soa)))
}

fn name_server(origin: &str) -> Option<Record> {
    Some(Record::from_rdata(name(origin)?, TTL_S, RData::NS(NS(name(&format!("ns.dns.{origin}"))?))))
}

#[cfg(test)]
mod tests;
