//! Locks that outlive a panic. What they guard here is whole after every statement, and a panic elsewhere must cost one
//! engine or one request, never everybody who comes to the lock after it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Never across an `await`, and never while sending: compute under the lock, act outside.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
