/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the owner and its clients say to each other.
 *
 * They talk over a SOCK_SEQPACKET Unix socket, so a message is one of these
 * structures, whole, or it is garbage.  A client sends one lend_request and
 * nothing after it; the owner answers with lend_replies.  The connection is
 * the loan: when it ends, for whatever reason, so does the loan.
 */
#ifndef VFIO_LEND_H
#define VFIO_LEND_H

#include <stdarg.h>
#include <stdbool.h>
#include <linux/types.h>

#define LEND_MAGIC	0x4c454e44	/* "LEND" */
#define LEND_NAME_LEN	16

struct lend_request {
	__u32 magic;
	__u32 time_ms;			/* 0: as long as the owner allows */
	char pool[LEND_NAME_LEN];	/* which kind of slice */
	char name[LEND_NAME_LEN];	/* for the owner's log, not trusted */
};

enum lend_status {
	LEND_QUEUED,	/* no slice is free, place says how many are ahead */
	LEND_LENT,	/* comes with the DMABUF fd as SCM_RIGHTS */
	LEND_REVOKED,	/* the slice is gone already */
	LEND_REFUSED,	/* error says why */
};

enum lend_kind {
	LEND_REGISTERS,	/* 32 bit accesses; laid out as in QEMU's edu */
	LEND_MEMORY,	/* zeroed by the owner before each loan */
	LEND_BUFFER,	/* as LEND_MEMORY, write-combining where possible */
};

struct lend_reply {
	__u32 magic;
	__u32 status;	/* enum lend_status */
	__u32 error;	/* LEND_REFUSED: an errno */
	__u32 place;	/* LEND_QUEUED: 1 is the next to be served */
	__u32 kind;	/* LEND_LENT: enum lend_kind */
	__u32 time_ms;	/* LEND_LENT: granted, maybe less than asked for */
	__u64 length;	/* LEND_LENT: bytes */
	__u32 combining; /* LEND_LENT: 1 if writes need a barrier to arrive */
	__u32 reserved;
};

int lend_owner(int argc, char **argv);
int lend_client(int argc, char **argv);
int lend_demo(int argc, char **argv);

/* In vfio-lend.c */
#define __printf(a, b)	__attribute__((format(printf, a, b)))
#define __noreturn	__attribute__((noreturn))

extern const char *lend_who;

__u64 now_ms(void);
int ms_until(__u64 deadline);
void vsay(const char *fmt, va_list args) __printf(1, 0);
void say(const char *fmt, ...) __printf(1, 2);
void die(const char *fmt, ...) __printf(1, 2) __noreturn;
bool parse_u64(const char *text, __u64 max, __u64 *value);
void set_name(char *to, const char *from);

#endif /* VFIO_LEND_H */
