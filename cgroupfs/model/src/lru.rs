//! The pages of one group, counted by class.

/// LRU lists and swap, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lru {
    /// Clean page cache, read once.
    pub(crate) inactive_file: u64,
    /// Clean page cache, read again.
    pub(crate) active_file: u64,
    /// Page cache that waits for the disk.
    pub(crate) dirty: u64,
    /// Page cache that is being written.
    pub(crate) writeback: u64,
    /// Anonymous pages not used lately.
    pub(crate) inactive_anon: u64,
    /// Anonymous pages used lately.
    pub(crate) active_anon: u64,
    /// Shared memory and tmpfs: on the anon lists, file cache in the statistics.
    pub(crate) shmem: u64,
    /// Locked anonymous pages.
    pub(crate) mlocked: u64,
    /// Anonymous pages in swap.
    pub(crate) swapped_anon: u64,
    /// Shared memory in swap.
    pub(crate) swapped_shmem: u64,
}

impl Lru {
    /// What is charged as memory.
    pub(crate) fn resident(&self) -> u64 {
        self.file() + self.inactive_anon + self.active_anon + self.shmem + self.mlocked
    }

    /// What is charged as swap.
    pub(crate) fn swapped(&self) -> u64 {
        self.swapped_anon + self.swapped_shmem
    }

    /// Page cache without shared memory.
    pub(crate) fn file(&self) -> u64 {
        self.inactive_file + self.active_file + self.dirty + self.writeback
    }

    /// Anonymous pages that reclaim may look at.
    pub(crate) fn anon(&self) -> u64 {
        self.inactive_anon + self.active_anon
    }

    /// Drops up to `want` clean pages of the file lists, inactive ones first; active ones are
    /// deactivated while they are the longer list (`inactive_is_low`). Gives the number dropped.
    pub(crate) fn drop_clean(&mut self, want: u64) -> u64 {
        let mut got = take(&mut self.inactive_file, want);
        if got < want && self.active_file > self.inactive_file {
            got += take(&mut self.active_file, want - got);
        }
        got
    }

    /// Swaps up to `want` pages out, those not used lately first. Gives the number swapped.
    pub(crate) fn swap_out(&mut self, want: u64) -> u64 {
        let mut anon = take(&mut self.inactive_anon, want);
        anon += take(&mut self.active_anon, want - anon);
        let shmem = take(&mut self.shmem, want - anon);
        self.swapped_anon += anon;
        self.swapped_shmem += shmem;
        anon + shmem
    }

    /// Starts writing up to `want` dirty pages.
    pub(crate) fn start_writeback(&mut self, want: u64) -> u64 {
        let started = take(&mut self.dirty, want);
        self.writeback += started;
        started
    }

    /// Ends up to `want` pages' writeback: clean, at the tail of the inactive list.
    pub(crate) fn end_writeback(&mut self, want: u64) -> u64 {
        let ended = take(&mut self.writeback, want);
        self.inactive_file += ended;
        ended
    }
}

/// Takes up to `want` from `from`.
pub(crate) fn take(from: &mut u64, want: u64) -> u64 {
    let got = want.min(*from);
    *from -= got;
    got
}
