//! A small web server for the example: one file, the standard library only, linked statically.
//!
//! It answers every request with a greeting and the name of the pod that answered. On SIGTERM it goes on serving for
//! a moment, so that requests on their way are answered while the Service forgets the pod, then it exits with 0.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a stopping server still answers.
const DRAIN: Duration = Duration::from_millis(500);
const SIGTERM: i32 = 15;
static STOPPING: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn on_term(_number: i32) {
    STOPPING.store(true, Ordering::SeqCst);
}

fn greeting() -> String {
    std::fs::read_to_string("/etc/hello/greeting").map_or_else(|_| "Hello".to_owned(), |text| text.trim().to_owned())
}

/// Who we are. A program that was started from a memory snapshot has the environment of the pod that was saved; its own
/// name is in a file.
fn pod_name() -> String {
    let file = std::fs::read_to_string("/run/cumulet/env").unwrap_or_default();
    let own = file.lines().find_map(|line| line.strip_prefix("POD_NAME=")).map(str::to_owned);
    let given = || std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).ok();
    own.or_else(given).unwrap_or_else(|| "somewhere".to_owned())
}

fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let body = if path == "/healthz" { "ok\n".to_owned() } else { format!("{} from {}\n", greeting(), pod_name()) };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    if path != "/healthz" {
        println!("{} {path}", stream.peer_addr()?);
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    // SAFETY: `on_term` only stores into an atomic, which a signal handler may do.
    unsafe { signal(SIGTERM, on_term) };
    let port = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080u16);
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on port {port}");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || answer(&mut stream));
        }
    });
    let mut stopping_since = None;
    loop {
        // The signal interrupts nothing here: a short pause is all that this little program needs.
        std::thread::sleep(Duration::from_millis(20));
        if STOPPING.load(Ordering::SeqCst) && stopping_since.is_none() {
            println!("stopping");
            stopping_since = Some(Instant::now());
        }
        if stopping_since.is_some_and(|since: Instant| since.elapsed() > DRAIN) {
            return Ok(());
        }
    }
}
