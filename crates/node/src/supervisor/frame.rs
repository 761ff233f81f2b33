//! Frames on the wire, for both sides of [`super::proto`].
//!
//! Absent on purpose: any knowledge of who speaks. Reading is not cancel-safe (a half-read frame would be lost), so
//! every connection has one task that only reads.

use super::proto::{FrameKind, MAX_FRAME_BYTES};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes before the payload: length and kind.
const HEADER_BYTES: usize = 5;

/// One frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) payload: Bytes,
}

impl Frame {
    /// A frame of raw bytes; the caller keeps `payload` within [`MAX_FRAME_BYTES`].
    pub(crate) fn raw(kind: FrameKind, payload: impl Into<Bytes>) -> Self {
        Self { kind, payload: payload.into() }
    }

    /// A JSON frame. The protocol's types always encode; an error means that one grew beyond the limit.
    pub(crate) fn json<T: Serialize>(value: &T) -> io::Result<Self> {
        let payload = serde_json::to_vec(value)?;
        if payload.len() > MAX_FRAME_BYTES as usize {
            return Err(invalid(format!("message of {} bytes exceeds the frame limit", payload.len())));
        }
        Ok(Self { kind: FrameKind::Json, payload: payload.into() })
    }

    /// Decodes a JSON frame.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> io::Result<T> {
        if self.kind != FrameKind::Json {
            return Err(invalid(format!("expected a JSON frame, got {:?}", self.kind)));
        }
        serde_json::from_slice(&self.payload).map_err(|e| invalid(format!("bad message: {e}")))
    }

    /// Columns and rows of a resize frame.
    pub(crate) fn decode_resize(&self) -> io::Result<(u16, u16)> {
        match self.payload[..] {
            [c1, c0, r1, r0] => Ok((u16::from_be_bytes([c1, c0]), u16::from_be_bytes([r1, r0]))),
            _ => Err(invalid("resize frame is not 4 bytes long".into())),
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

fn kind_of(byte: u8) -> Option<FrameKind> {
    Some(match byte {
        0 => FrameKind::Json,
        1 => FrameKind::Stdin,
        2 => FrameKind::Stdout,
        3 => FrameKind::Stderr,
        4 => FrameKind::CloseStdin,
        5 => FrameKind::Resize,
        6 => FrameKind::Exit,
        _ => return None,
    })
}

/// Reads one frame; `None` at a clean end of the connection.
pub(crate) async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Frame>> {
    let mut header = [0_u8; HEADER_BYTES];
    if from.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    if length > MAX_FRAME_BYTES {
        return Err(invalid(format!("frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")));
    }
    let kind = kind_of(header[4]).ok_or_else(|| invalid(format!("unknown frame kind {}", header[4])))?;
    let mut payload = vec![0_u8; length as usize];
    from.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, payload: payload.into() }))
}

/// Writes one frame with a single system call in the usual case.
pub(crate) async fn write<W: AsyncWrite + Unpin>(to: &mut W, frame: &Frame) -> io::Result<()> {
    let length = u32::try_from(frame.payload.len()).map_err(|_| invalid("payload too long".into()))?;
    let mut buffer = Vec::with_capacity(HEADER_BYTES + frame.payload.len());
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.push(frame.kind as u8);
    buffer.extend_from_slice(&frame.payload);
    to.write_all(&buffer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn round_trip(frame: Frame) -> Frame {
        let (mut a, mut b) = tokio::io::duplex(64);
        let sent = frame.clone();
        let writer = tokio::spawn(async move { write(&mut a, &sent).await });
        let got = read(&mut b).await.unwrap().unwrap();
        writer.await.unwrap().unwrap();
        assert!(read(&mut b).await.unwrap().is_none());
        got
    }

    #[tokio::test]
    async fn frames_round_trip() {
        for payload in [vec![], vec![7; 5], vec![1; 100_000]] {
            let got = round_trip(Frame::raw(FrameKind::Stdout, payload.clone())).await;
            assert_eq!((got.kind, &got.payload[..]), (FrameKind::Stdout, &payload[..]));
        }
    }

    #[tokio::test]
    async fn hostile_headers_are_refused() {
        for header in [[0xff, 0xff, 0xff, 0xff, 0], [0, 0, 0, 0, 99]] {
            assert!(read(&mut &header[..]).await.is_err());
        }
        assert!(read(&mut &[0_u8, 0][..]).await.is_err());
        assert!(Frame::raw(FrameKind::Resize, vec![1, 2, 3]).decode_resize().is_err());
        assert!(Frame::raw(FrameKind::Stdin, vec![]).decode::<u32>().is_err());
    }
}
