//! The only unsafe code of this crate: libnftables' C interface.
//!
//! JUSTIFICATION: nftables' own netlink protocol is large and its expressions are what the nft compiler produces; the
//! library is the supported way to apply a ruleset in process, and it has a C interface only.

use crate::Error;
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};

const LIBRARY: &str = "libnftables.so.1";

type New = unsafe extern "C" fn(u32) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);
type Buffer = unsafe extern "C" fn(*mut c_void) -> c_int;
type Text = unsafe extern "C" fn(*mut c_void) -> *const c_char;
type Run = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;

/// A library context. Not `Sync`: the library keeps buffers in it.
pub(super) struct Context {
    raw: *mut c_void,
    free: Free,
    run: Run,
    output: Text,
    errors: Text,
    /// Dropped last: the function pointers above point into it.
    _library: Library,
}

// SAFETY: libnftables keeps no thread-local state in a context; it only forbids use by two threads at once, which
// `&mut self` in `run` rules out.
unsafe impl Send for Context {}

impl Context {
    pub(super) fn new() -> Result<Self, Error> {
        // SAFETY: loading runs the initialisers of a system library that expects nothing of its caller; the
        // signatures are those of nftables/libnftables.h, unchanged since version 1 of the library.
        let (library, new, buffer_output, buffer_errors, free, run, output, errors) = unsafe {
            let library = Library::new(LIBRARY).map_err(Error::NftMissing)?;
            let new: New = symbol(&library, b"nft_ctx_new\0")?;
            let buffer_output: Buffer = symbol(&library, b"nft_ctx_buffer_output\0")?;
            let buffer_errors: Buffer = symbol(&library, b"nft_ctx_buffer_error\0")?;
            let free: Free = symbol(&library, b"nft_ctx_free\0")?;
            let run: Run = symbol(&library, b"nft_run_cmd_from_buffer\0")?;
            let output: Text = symbol(&library, b"nft_ctx_get_output_buffer\0")?;
            let errors: Text = symbol(&library, b"nft_ctx_get_error_buffer\0")?;
            (library, new, buffer_output, buffer_errors, free, run, output, errors)
        };
        // SAFETY: 0 is NFT_CTX_DEFAULT; the result is checked before it is used.
        let raw = unsafe { new(0) };
        if raw.is_null() {
            return Err(Error::NftContext);
        }
        let context = Self { raw, free, run, output, errors, _library: library };
        // SAFETY: `raw` is a live context.
        if unsafe { buffer_output(raw) != 0 || buffer_errors(raw) != 0 } {
            return Err(Error::NftContext);
        }
        Ok(context)
    }

    /// Runs commands and returns what they print.
    pub(super) fn run(&mut self, script: &str) -> Result<String, Error> {
        let script =
            CString::new(script).map_err(|_| Error::Nft("the script contains a zero byte".to_owned()))?;
        // SAFETY: `raw` is a live context and `script` outlives the call.
        let failed = unsafe { (self.run)(self.raw, script.as_ptr()) } != 0;
        // Both are read each time: reading empties the buffer.
        let (output, errors) = (self.text(self.output), self.text(self.errors));
        if failed { Err(Error::Nft(errors.trim().to_owned())) } else { Ok(output) }
    }

    fn text(&mut self, get: Text) -> String {
        // SAFETY: `raw` is a live context with both buffers enabled; the text belongs to it until the next call and
        // is copied before that.
        unsafe {
            let text = get(self.raw);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `raw` came from nft_ctx_new and is freed exactly once, before the library is unloaded.
        unsafe { (self.free)(self.raw) }
    }
}

/// Looks a function up.
///
/// # Safety
/// `T` must be the function's type, and the result must not outlive the library.
unsafe fn symbol<T: Copy>(library: &Library, name: &[u8]) -> Result<T, Error> {
    // SAFETY: the caller answers for the type.
    let found: Symbol<'_, T> = unsafe { library.get(name) }.map_err(Error::NftMissing)?;
    Ok(*found)
}
