//! A program that looks at itself in a tight loop, through a snapshot: what it draws, who it is, what time it is, and
//! what became of its connection. Built statically by the tests that use it, of the standard library alone.
//!
//! Lines on standard output, one JSON object each: `{"tick":N}` every so often, so that lost and doubled output shows;
//! and the whole records around every change of who it is: the one before it, the one in which it was first seen, and
//! some after it.
//!
//! HTTP on port 8080: `/healthz`, once it has looked often enough; `/now` is the wall clock in microseconds.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Iterations between two ticks.
const TICK: u64 = 16;
/// Iterations after which it is ready.
const WARM: u64 = 10 * TICK;
/// Records after a change.
const AFTER: u32 = 4;
/// Pause between records of one that rests.
const REST: Duration = Duration::from_millis(100);

/// The last iteration.
static LOOKED: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize;
    fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
}

/// A record: names and values in their order.
type Record = Vec<(&'static str, String)>;

/// What makes out who it is: a change of one of these is a change of identity.
const IDENTITY: &[&str] = &[
    "generation",
    "boot_id",
    "machine_id",
    "hostname",
    "mac",
    "address",
    "route",
    "name",
    "uid",
    "hosts",
    "document",
    "env",
    "tcp",
];

fn main() {
    let port = std::env::var("PEER_PORT").unwrap_or_default();
    std::thread::spawn(serve);
    let mut peer = connect(&port);
    let (mut before, mut left): (Option<Record>, u32) = (None, 0);
    // Once it has become somebody it rests: many of it share few processors.
    let mut rests = false;
    for number in 0_u64.. {
        let record = look(number, &mut peer);
        LOOKED.store(number, Ordering::Relaxed);
        if peer.is_none() {
            peer = connect(&port);
        }
        if number % TICK == 0 {
            println!("{{\"tick\":{number}}}");
        }
        if let Some(before) = &before {
            let of = |record: &Record| -> Vec<String> {
                record
                    .iter()
                    .filter(|(name, _)| IDENTITY.contains(name))
                    .map(|(_, value)| value.clone())
                    .collect()
            };
            if of(before) != of(&record) {
                print(before, "before");
                print(&record, "change");
                left = AFTER;
            } else if left > 0 {
                print(&record, "after");
                left -= 1;
                rests |= left == 0 && is_clone(&record);
            }
        }
        before = Some(record);
        if rests {
            std::thread::sleep(REST);
        }
    }
}

/// A machine that has only booted has no generation, or the first.
fn is_clone(record: &Record) -> bool {
    let generation = record.iter().find(|(name, _)| *name == "generation");
    generation.is_some_and(|(_, value)| value.parse().is_ok_and(|number: u64| number > 0))
}

/// One iteration. The generation is read first and last: when both are the new one, all between is after the thaw.
fn look(number: u64, peer: &mut Option<TcpStream>) -> Record {
    let mut record = vec![
        ("seq", number.to_string()),
        ("generation", file("/run/cumulet/generation")),
        ("monotonic", clock(1)),
        ("wall", wall()),
        ("random", random()),
        ("uuid", file("/proc/sys/kernel/random/uuid")),
        ("boot_id", file("/proc/sys/kernel/random/boot_id")),
        ("machine_id", file("/etc/machine-id")),
        ("hostname", file("/proc/sys/kernel/hostname")),
        ("mac", file("/sys/class/net/eth0/address")),
        ("address", address()),
        ("route", gateway()),
        ("name", file("/podinfo/name")),
        ("uid", file("/podinfo/uid")),
        ("hosts", file("/etc/hosts").lines().last().unwrap_or_default().to_owned()),
        ("document", file("/run/cumulet/identity.json")),
        ("env", file("/run/cumulet/env")),
        ("config", file("/config/key")),
    ];
    let fate = fate(peer, number);
    record.push(("tcp", fate));
    record.push(("random_last", random()));
    record.push(("monotonic_last", clock(1)));
    record.push(("generation_last", file("/run/cumulet/generation")));
    record
}

/// Says something on the connection and looks whether it lives.
fn fate(peer: &mut Option<TcpStream>, number: u64) -> String {
    let Some(stream) = peer else { return "none".to_owned() };
    let mut answer = [0_u8; 256];
    let looked = match number % TICK {
        0 => stream
            .write_all(format!("{}\n", file("/podinfo/name")).as_bytes())
            .and_then(|()| stream.read(&mut answer)),
        _ => stream.read(&mut answer),
    };
    let text = match looked {
        Ok(0) => "closed".to_owned(),
        Err(error) if error.kind() != ErrorKind::WouldBlock => format!("dead: {error}"),
        _ => {
            return stream
                .local_addr()
                .map_or_else(|e| e.to_string(), |address| format!("alive from {address}"));
        }
    };
    *peer = None;
    text
}

fn connect(port: &str) -> Option<TcpStream> {
    let stream = TcpStream::connect(format!("{}:{port}", gateway())).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

fn file(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) => format!("{error}"),
    }
}

fn wall() -> String {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros().to_string()
}

fn clock(which: i32) -> String {
    let mut time = [0_i64; 2];
    // SAFETY: `time` has the layout of a timespec on 64-bit Linux and outlives the call.
    unsafe { clock_gettime(which, &raw mut time) };
    (time[0] * 1_000_000_000 + time[1]).to_string()
}

fn random() -> String {
    let mut bytes = [0_u8; 16];
    // SAFETY: the buffer is as long as is said.
    let got = unsafe { getrandom(bytes.as_mut_ptr(), bytes.len(), 0) };
    assert_eq!(got, 16);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The address that packets leave from; connecting a datagram socket sends none.
fn address() -> String {
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("198.51.100.1:9")?;
        socket.local_addr()
    });
    own.map_or_else(|error| error.to_string(), |address| address.ip().to_string())
}

/// The default route's gateway.
fn gateway() -> String {
    let table = file("/proc/net/route");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of =
        lines.filter(|fields| fields.get(1) == Some(&"00000000")).find_map(|fields| fields.get(2).copied());
    let number = of.and_then(|hex| u32::from_str_radix(hex, 16).ok());
    number.map_or_else(|| "none".to_owned(), |number| Ipv4Addr::from(number.to_le_bytes()).to_string())
}

fn print(record: &Record, what: &str) {
    let quoted = |text: &str| {
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t")
    };
    let fields: Vec<String> =
        record.iter().map(|(name, value)| format!("\"{name}\":\"{}\"", quoted(value))).collect();
    println!("{{\"record\":\"{what}\",{}}}", fields.join(","));
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:8080")?;
    for stream in listener.incoming() {
        // One that went away meanwhile is no matter; requests are short.
        let _ = stream.and_then(|mut stream| {
            let mut request = Vec::new();
            let mut piece = [0_u8; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut piece)? {
                    0 => break,
                    length => request.extend_from_slice(&piece[..length]),
                }
            }
            let body = if request.starts_with(b"GET /now") { wall() } else { "ok".to_owned() };
            let status =
                if LOOKED.load(Ordering::Relaxed) > WARM { "200 OK" } else { "503 Service Unavailable" };
            let length = body.len();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        });
    }
    Ok(())
}
