/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One DMABUF, as in drivers/vfio/pci/vfio_pci_dmabuf.c and vfio_pci_mmap.c, with the names
 * there. Page faults, two REVOKEs, a reset, an importer, the close of the device and the
 * release race; an O_PATH descriptor may keep the dentry after the file. A section under a
 * lock of the buffer or of the list is atomic, memory is sequentially consistent.
 */
mtype = { USABLE, BUSY, DEAD };

mtype state = USABLE;
bool mapped, drained, told;
byte nr_attached, nr_maps;

bool pte;			/* a CPU has access */
bool device = true;		/* priv->vdev may be used */
bool linked = true;		/* on the list of the device */
bool freed;			/* priv has been freed */
bool ended;			/* a REVOKE, or the close, has returned */
bool memory_lock;

/* References to the file: of the client's VMA, two callers of REVOKE, an importer */
byte files = 4;
byte dentries = 2;		/* the file, O_PATH */

inline put() { atomic { files--; if :: files == 0 -> dentries-- :: else fi } }
inline nothing_left() { atomic { assert(!pte && !nr_maps); ended = true } }

/* vfio_pci_dma_buf_zap() */
inline zap() {
	atomic { assert(!freed); was_mapped = mapped };
	if
	:: was_mapped ->
#if BREAK == 1	/* another zap returns before the PTEs are gone */
		mapped = false; pte = false
#else
		pte = false; mapped = false
#endif
	:: else
	fi
}

/* vfio_pci_dma_buf_drain() */
inline drain() {
	if
	:: !drained ->
		if
		:: nr_attached > 0 ->
#if BREAK != 2	/* importers are not told */
			atomic { assert(!freed); told = nr_maps > 0 };
#endif
			nr_maps == 0
		:: else
		fi;
		drained = true
	:: else
	fi
}

/* vfio_pci_dma_buf_get_next(), with memory_lock */
inline get_next() {
	atomic {
		assert(!linked || !freed);
		got = linked;
#if BREAK != 3	/* a buffer is used without a reference */
		got = got && files > 0;
#endif
		files = files + got
	}
}

/* vfio_pci_dma_buf_set_state() */
inline set_state(new) {
	atomic {
		assert(!freed);
		if
#if BREAK != 4	/* a dead buffer gets a new state */
		:: state == DEAD
#endif
		:: else -> drained = drained && new != USABLE; state = new
		fi
	}
}

/* vfio_pci_dma_buf_end_access() */
inline end_access(new) {
	get_next();
#if BREAK == 5	/* unmapped, then revoked */
	if :: got -> zap(); set_state(new); put() :: else fi;
#else
	if :: got -> set_state(new); zap(); put() :: else fi;
#endif
	get_next();
	if :: got -> drain(); put() :: else fi
}

inline insert() {
	if
	:: seen == USABLE -> assert(device && !ended); mapped = true; pte = true
	:: else
	fi
}

/* vfio_pci_dma_buf_huge_fault(), twice, and munmap() */
active proctype client() {
	mtype seen;
	byte n;

	do
	:: n < 2 ->
#if BREAK == 6	/* tested, then inserted */
		seen = state;
		atomic { assert(!freed); insert() };
#else
		atomic { assert(!freed); seen = state; insert() };
#endif
		if :: seen == BUSY -> state != BUSY :: else fi;
		n++
	:: break
	od;
	pte = false;
	put()
}

/* vfio_pci_dma_buf_revoke() */
active [2] proctype revoke() {
	bool was_mapped, done;

	atomic {
		assert(!freed);
		done = state == DEAD;
#if BREAK != 7	/* EBADFD as soon as the buffer is dead */
		done = done && drained;
#endif
		state = DEAD
	};
	if :: !done -> zap(); drain() :: else fi;
	nothing_left();
	put()
}

inline map() { if :: ok -> assert(!freed && !ended); nr_maps++ :: else fi }

/* vfio_pci_dma_buf_attach(), vfio_pci_dma_buf_map() */
active proctype importer() {
	bool ok;

	nr_attached++; ok = state == USABLE;
	if
	:: ok ->
#if BREAK == 8	/* the state is read outside of the resv lock */
		ok = state == USABLE;
		atomic { map() }
#else
		atomic { ok = state == USABLE; map() }
#endif
	:: else
	fi;
end:	if :: ok -> told; nr_maps-- :: else fi;
	nr_attached--;
	put()
}

active proctype reset() {
	bool was_mapped, got;

	atomic { !memory_lock -> memory_lock = true };
	if
	:: device ->
		end_access(BUSY);
		get_next();
		if :: got -> set_state(USABLE); put() :: else fi
	:: else
	fi;
	memory_lock = false
}

/* vfio_pci_dma_buf_cleanup() */
active proctype close() {
	bool was_mapped, got;

	atomic { !memory_lock -> memory_lock = true };
#if BREAK == 9	/* the device goes before the state changes */
	device = false;
#endif
	end_access(DEAD);
	linked = false;
	device = false;
	memory_lock = false;
	nothing_left()
}

active proctype o_path() { dentries-- }

/* vfio_pci_dma_buf_release() */
active proctype release() {
end:	dentries == 0;
#if BREAK != 10	/* freed on the list of the device */
	linked = false;
#endif
	freed = true
}
