//! The conversation against a made-up QEMU that behaves and misbehaves.

use super::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"x\"}, \"capabilities\": [\"oob\"]}}\r\n";

/// Plays QEMU: greets, then answers each line with what the script says.
async fn play(stream: UnixStream, script: Vec<&'static str>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(GREETING.as_bytes()).await.unwrap();
    for answer in script {
        if lines.next_line().await.unwrap().is_none() {
            return;
        }
        write.write_all(answer.as_bytes()).await.unwrap();
    }
    // Stay until the other side goes.
    while let Ok(Some(_)) = lines.next_line().await {}
}

async fn check(script: Vec<&'static str>, expected: Result<Value, &str>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let player = tokio::spawn(play(theirs, script.clone()));
    let result = match Qmp::connect(ours).await {
        Ok((qmp, _events)) => qmp.execute::<Value>("query-status", Value::Null).await,
        Err(e) => Err(e),
    };
    match (&result, expected) {
        (Ok(value), Ok(wanted)) => assert_eq!(*value, wanted, "{script:?}"),
        (Err(e), Err(wanted)) => assert!(e.to_string().contains(wanted), "{script:?}: {e}"),
        _ => panic!("{script:?}: {result:?}"),
    }
    player.abort();
}

#[tokio::test]
async fn conversations() {
    let hello = "{\"return\": {}, \"id\": 0}\r\n";
    check(vec![hello, "{\"return\": {\"running\": true}, \"id\": 1}\n"], Ok(json!({ "running": true })))
        .await;
    check(
        vec![hello, "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": 7, \"id\": 1}\n"],
        Ok(json!(7)),
    )
    .await;
    check(
        vec![hello, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 1}\n"],
        Err("no"),
    )
    .await;
    check(vec![hello, "{\"return\": {}, \"id\": 9}\n"], Err("answer Some(9) where 1 was due")).await;
    check(vec![hello, "{\"return\": {}}\n"], Err("answer None")).await;
    check(vec![hello, "{\"surprise\": 1}\n"], Err("neither")).await;
    check(vec![hello, "nonsense\n"], Err("not QMP")).await;
    check(vec!["{\"error\": {\"desc\": \"never\"}, \"id\": 0}\n"], Err("never")).await;
}

#[tokio::test]
async fn deep_nesting_and_endless_lines_end_the_connection() {
    for flood in ["[", "x"] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let player = tokio::spawn(async move {
            let mut theirs = theirs;
            theirs.write_all(GREETING.as_bytes()).await.unwrap();
            let mut first = [0; 64];
            let _ = theirs.read(&mut first).await;
            let chunk = flood.repeat(65536);
            let mut written = 0;
            while theirs.write_all(chunk.as_bytes()).await.is_ok() {
                written += chunk.len();
                assert!(written < 64 << 20, "the other side takes whatever comes");
            }
        });
        let error = Qmp::connect(ours).await.err().unwrap().to_string();
        assert!(error.contains("line"), "{error}");
        player.await.unwrap();
    }
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::{Read, Write};
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut pipe_out, pipe_in) = std::io::pipe().unwrap();
    let player = tokio::spawn(async move {
        let mut theirs = theirs;
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        let mut first = [0; 256];
        let _ = theirs.read(&mut first).await.unwrap();
        theirs.write_all(b"{\"return\": {}, \"id\": 0}\n").await.unwrap();
        theirs.readable().await.unwrap();
        let fd = theirs
            .async_io(Interest::READABLE, || {
                let mut data = [0; 256];
                let mut iov = [std::io::IoSliceMut::new(&mut data)];
                let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
                let message =
                    recvmsg::<()>(theirs.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty())?;
                let fd = message.cmsgs()?.find_map(|c| match c {
                    ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                    _ => None,
                });
                Ok(fd)
            })
            .await
            .unwrap()
            .unwrap();
        // SAFETY: the descriptor was just received and belongs to nobody else. JUSTIFICATION: that is how one receives.
        let mut file = std::fs::File::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
        file.write_all(b"through").unwrap();
        theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
    });
    let (qmp, _events) = Qmp::connect(ours).await.unwrap();
    qmp.give_descriptor("state", pipe_in.into()).await.unwrap();
    player.await.unwrap();
    let mut text = String::new();
    pipe_out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}
