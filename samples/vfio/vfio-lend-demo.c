// SPDX-License-Identifier: GPL-2.0-only
/*
 * The demo: runs an owner and a number of good, bad and dying clients, shows
 * what they say and checks that each learns what it should.  The last line is
 * "demo: PASS" or "demo: FAIL: reason", and so is the exit status.
 *
 * It drives them like expect(1): each is a process of its own with its output
 * in a pipe.  Every wait is for a line of output or an exit, and has a limit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "vfio-lend.h"

#define MAX_ACTORS	40
#define WAIT_MS		30000	/* emulated machines are slow */
#define NOBODY		65534

#define LOAN_MS		"60000"	/* the owner's limit */
#define HANG_MS		"3000"	/* what the hung client asked for */

/* A process that takes part */
struct actor {
	const char *name;
	pid_t pid;		/* 0: ended and reaped */
	int status;
	int out;		/* -1: at its end */
	char *log;		/* all it said */
	size_t len;
	size_t shown;		/* so much of it was printed */
	size_t seen;		/* so much of it was expected already */
};

static struct actor actors[MAX_ACTORS];
static unsigned int nr_actors;
static char dir[] = "/tmp/vfio-lend-XXXXXX";
static char socket_path[sizeof(dir) + 8];
static __u64 start;

/* Only what was started here; an orphan ends by itself, with the owner. */
static void end_all(void)
{
	unsigned int i;

	for (i = 0; i < nr_actors; i++) {
		if (!actors[i].pid)
			continue;
		kill(actors[i].pid, SIGKILL);
		waitpid(actors[i].pid, NULL, 0);
	}
	unlink(socket_path);
	rmdir(dir);
}

static void __noreturn __printf(1, 2) fail(const char *fmt, ...)
{
	char reason[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	end_all();
	die("FAIL: %s", reason);
}

static void step(const char *what)
{
	static int number;

	printf("\n");
	fflush(stdout);
	say("%d. %s", ++number, what);
}

/* Processes and their output */

static void start_actor(const char *name, char *const argv[])
{
	struct actor *actor;
	int out[2];

	if (nr_actors == MAX_ACTORS)
		fail("more than %d processes", MAX_ACTORS);
	if (pipe2(out, O_CLOEXEC))
		fail("pipe: %s", strerror(errno));

	actor = &actors[nr_actors];
	*actor = (struct actor){ .name = name, .out = out[0] };
	actor->pid = fork();
	if (actor->pid < 0)
		fail("fork: %s", strerror(errno));
	if (!actor->pid) {
		/* No owner without demo, and no loan without owner */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		umask(0);	/* who may connect is up to the folder */
		dup2(out[1], STDOUT_FILENO);
		dup2(out[1], STDERR_FILENO);
		execv("/proc/self/exe", argv);
		die("exec /proc/self/exe: %s", strerror(errno));
	}
	close(out[1]);
	nr_actors++;
}

/* The latest with that name */
static struct actor *find(const char *name)
{
	unsigned int i = nr_actors;

	while (i--)
		if (!strcmp(actors[i].name, name))
			return &actors[i];
	fail("there is no %s", name);
}

static void show_lines(struct actor *actor)
{
	__u64 ms = now_ms() - start;
	char *line, *end;

	while (actor->shown < actor->len) {
		line = actor->log + actor->shown;
		end = memchr(line, '\n', actor->len - actor->shown);
		if (!end)
			return;
		printf("%3u.%03u  %.*s\n", (unsigned int)(ms / 1000),
		       (unsigned int)(ms % 1000), (int)(end - line), line);
		fflush(stdout);
		actor->shown += end + 1 - line;
	}
}

static void read_output(struct actor *actor)
{
	char buf[1024];
	ssize_t len = read(actor->out, buf, sizeof(buf));

	if (len <= 0) {
		close(actor->out);
		actor->out = -1;
		return;
	}
	actor->log = realloc(actor->log, actor->len + len + 1);
	if (!actor->log)
		fail("out of memory");
	memcpy(actor->log + actor->len, buf, len);
	actor->len += len;
	actor->log[actor->len] = '\0';
	show_lines(actor);
}

/* Show what anybody says, for a moment; note who has ended. */
static void pump(int ms)
{
	struct pollfd fds[MAX_ACTORS];
	unsigned int i;

	for (i = 0; i < nr_actors; i++)
		fds[i] = (struct pollfd){ actors[i].out, POLLIN, 0 };
	if (poll(fds, nr_actors, ms) < 0 && errno != EINTR)
		fail("poll: %s", strerror(errno));

	for (i = 0; i < nr_actors; i++) {
		struct actor *actor = &actors[i];

		if (fds[i].revents)
			read_output(actor);
		if (actor->pid && waitpid(actor->pid, &actor->status,
					  WNOHANG) == actor->pid)
			actor->pid = 0;
	}
}

static bool has_said(struct actor *actor, const char *text)
{
	char *found = actor->log ? strstr(actor->log + actor->seen, text) :
				   NULL;

	if (found)
		actor->seen = found + strlen(text) - actor->log;
	return found;
}

/*
 * Until it says so, or the alternative if there is one, after what was expected
 * of it before. Returns if it was the alternative.
 */
static bool expect_either(const char *name, const char *text, const char *other)
{
	__u64 deadline = now_ms() + WAIT_MS;
	struct actor *actor = find(name);

	for (;;) {
		if (has_said(actor, text))
			return false;
		if (other && has_said(actor, other))
			return true;
		if (actor->out < 0)
			fail("%s ended and did not say '%s'", name, text);
		if (!ms_until(deadline))
			fail("%s did not say '%s' in %d ms", name, text,
			     WAIT_MS);
		pump(ms_until(deadline) < 50 ? ms_until(deadline) : 50);
	}
}

static void expect(const char *name, const char *text)
{
	expect_either(name, text, NULL);
}

static void expect_end(const char *name, int status)
{
	__u64 deadline = now_ms() + WAIT_MS;
	struct actor *actor = find(name);

	while (actor->pid || actor->out >= 0) {
		if (!ms_until(deadline))
			fail("%s did not end in %d ms", name, WAIT_MS);
		pump(50);
	}
	if (WIFEXITED(actor->status) && WEXITSTATUS(actor->status) == status)
		return;
	if (WIFSIGNALED(actor->status))
		fail("%s was killed by signal %d", name,
		     WTERMSIG(actor->status));
	fail("%s exited with %d instead of %d", name,
	     WEXITSTATUS(actor->status), status);
}

/* SIGKILL: also wait for it, but not for a child that has its output open */
static void send_signal(const char *name, int sig)
{
	__u64 deadline = now_ms() + WAIT_MS;
	struct actor *actor = find(name);

	if (!actor->pid)
		fail("%s has ended already", name);
	say("sends %s to %s", sig == SIGKILL ? "SIGKILL" : "SIGTERM", name);
	kill(actor->pid, sig);
	while (sig == SIGKILL && actor->pid) {
		if (!ms_until(deadline))
			fail("%s survived SIGKILL for %d ms", name, WAIT_MS);
		pump(50);
	}
}

static void still_there(const char *name)
{
	pump(0);
	if (!find(name)->pid)
		fail("%s ended too early", name);
}

/* For a while nothing should happen but work. */
static void let_work(int ms)
{
	__u64 deadline = now_ms() + ms;

	while (ms_until(deadline))
		pump(ms_until(deadline));
}

/* The cast */

static char edu[64], memory[64], buffer[64];

static void start_owner(void)
{
	char *argv[] = {
		"vfio-lend", "owner", "-s", socket_path, "-t", LOAN_MS,
		"-q", "2", "-l", edu, "-l", memory, "-l", buffer, NULL,
	};

	start_actor("owner", argv);
	expect("owner", "ready");
}

static void start_client(char *name, char *pool, char *ms, char *what)
{
	char nobody[16];
	/* Unprivileged, if there is a privilege to give up */
	char *argv[] = {
		"vfio-lend", "client", "-s", socket_path, "-n", name,
		"-p", pool, "-t", ms, what,
		geteuid() ? NULL : "-u", nobody, NULL,
	};

	snprintf(nobody, sizeof(nobody), "%d", NOBODY);
	start_actor(name, argv);
}

/* With a slice, and at work */
static void start_user(char *name, char *pool)
{
	start_client(name, pool, "0", "use");
	expect(name, "works with the slice");
}

static void give_back(const char *name)
{
	send_signal(name, SIGTERM);
	expect(name, "gives the slice back");
	expect_end(name, EXIT_SUCCESS);
	expect("owner", "revoked");
}

/* The play */

static void many_at_once(void)
{
	step("Three clients at once: edu's registers, two slices of memory");
	start_user("Ann", "edu");
	start_user("Bob", "memory");
	start_user("Cem", "memory");
	let_work(500);
	still_there("Ann");
	still_there("Bob");
	still_there("Cem");
	give_back("Ann");
	give_back("Bob");
	give_back("Cem");
}

/* On a machine that has no such memory type, e.g. x86 without PAT, uncached */
static void write_combining(void)
{
	char refusal[128];

	snprintf(refusal, sizeof(refusal),
		 "buffer/0 cannot be write-combining: %s",
		 strerror(EOPNOTSUPP));
	step("A slice for buffers, write-combining, beside uncached memory");
	start_user("Zoe", "buffer");
	if (expect_either("owner", "lend buffer/0, write-combining, to Zoe",
			  refusal)) {
		expect("owner", "lend buffer/0 to Zoe");
		say("no write-combining here: Zoe works with uncached memory");
	}
	start_user("Bob", "memory");
	let_work(500);
	still_there("Zoe");
	give_back("Zoe");
	give_back("Bob");
}

static void beyond_slice(void)
{
	step("A client tries to map more than its slice");
	start_client("Dan", "memory", "0", "beyond");
	expect("Dan", "what it was lent still works");
	expect_end("Dan", EXIT_SUCCESS);
	expect("owner", "revoked");
}

static void revoke_by_client(void)
{
	step("A client tries to revoke and to reset");
	start_client("Eve", "edu", "0", "revoke");
	expect("Eve", "what it was lent still works");
	expect_end("Eve", EXIT_SUCCESS);
	expect("owner", "revoked");
}

static void hung_client(void)
{
	step("A hung client is stopped; the next in the queue gets the slice");
	start_client("Hal", "edu", HANG_MS, "hang");
	expect("Hal", "hangs");
	start_client("Ida", "edu", "0", "use");
	expect("Ida", "waits in the queue at place 1");
	expect("owner", "Hal");
	expect("owner", "overstays");
	expect("owner", "revoked edu/0");
	expect("owner", "lend edu/0 to Ida");
	expect("Hal", "SIGBUS: the slice is no longer mine");
	expect("Ida", "works with the slice");
	expect("Hal", "SIGBUS each time");
	expect("Hal", "mmap of the revoked DMABUF");
	expect_end("Hal", EXIT_SUCCESS);
	still_there("Ida");
	give_back("Ida");
}

static void killed_client(void)
{
	step("A client dies of kill -9 and leaves a child with the mapping");
	start_client("Kai", "edu", "0", "orphan");
	expect("Kai", "Kai's child: hangs");
	start_client("Lea", "edu", "0", "use");
	expect("Lea", "waits in the queue");
	send_signal("Kai", SIGKILL);
	expect("owner", "is gone");
	expect("owner", "revoked edu/0");
	expect("Kai", "Kai's child: SIGBUS");
	expect("Lea", "works with the slice");
	expect("Kai", "SIGBUS each time");
	give_back("Lea");
}

static void full_queue(void)
{
	step("The queue: one leaves it, one too many is refused");
	start_user("Max", "edu");
	start_client("Nic", "edu", "0", "use");
	expect("Nic", "waits in the queue at place 1");
	start_client("Oda", "edu", "0", "use");
	expect("Oda", "waits in the queue at place 2");
	start_client("Pia", "edu", "0", "use");
	expect("Pia", "is refused");
	expect_end("Pia", 3);
	send_signal("Nic", SIGTERM);
	expect("Nic", "gives up waiting");
	expect_end("Nic", 3);
	expect("owner", "Nic");
	expect("owner", "is gone");
	give_back("Max");
	expect("Oda", "works with the slice");
	give_back("Oda");
}

static void nonsense(void)
{
	step("Nonsense: garbage for a request, a pool that is not there");
	start_client("Quy", "edu", "0", "garbage");
	expect("Quy", "is refused");
	expect_end("Quy", EXIT_SUCCESS);
	expect("owner", "garbage");
	start_client("Roy", "nothing", "0", "use");
	expect("Roy", "is refused");
	expect_end("Roy", 3);
}

static void owner_ends(void)
{
	step("The owner ends: it takes everything back first");
	start_user("Sam", "edu");
	start_user("Tia", "memory");
	send_signal("owner", SIGTERM);
	expect("owner", "all slices are back");
	expect_end("owner", EXIT_SUCCESS);
	expect("Sam", "SIGBUS each time");
	expect("Tia", "SIGBUS each time");
	expect_end("Sam", 2);
	expect_end("Tia", 2);
}

/*
 * With memory only.  The kernel closes one device after the other, and QEMU 7.2
 * can misdirect what one CPU does to registers while another CPU makes the BARs
 * of a second device come or go: edu would be seen to fail before it is closed.
 */
static void owner_dies(void)
{
	step("A new owner dies of kill -9: the kernel takes everything back");
	start_owner();
	start_user("Uma", "memory");
	start_user("Val", "memory");
	send_signal("owner", SIGKILL);
	unlink(socket_path);
	expect("Uma", "SIGBUS each time");
	expect("Val", "SIGBUS each time");
	expect_end("Uma", 2);
	expect_end("Val", 2);
}

static const char usage[] =
"Usage: vfio-lend demo [EDU_BDF IVSHMEM_BDF]\n"
"Show lending and revoking with QEMU's edu and ivshmem-plain, both bound to\n"
"vfio-pci.  Without arguments the environment tells their PCI addresses:\n"
"VFIO_EDU_BDF and VFIO_IVSHMEM_BDF.\n";

static void find_devices(int argc, char **argv)
{
	const char *edu_bdf = getenv("VFIO_EDU_BDF");
	const char *ivshmem_bdf = getenv("VFIO_IVSHMEM_BDF");
	unsigned long page = sysconf(_SC_PAGESIZE);

	if (argc == 2 && !strcmp(argv[1], "-h")) {
		fputs(usage, stdout);
		exit(EXIT_SUCCESS);
	}
	if (argc != 1 && argc != 3)
		die("FAIL: 0 or 2 arguments, see -h");
	if (argc == 3) {
		edu_bdf = argv[1];
		ivshmem_bdf = argv[2];
	}
	if (!edu_bdf || !ivshmem_bdf)
		die("FAIL: VFIO_EDU_BDF or VFIO_IVSHMEM_BDF is not set");
	snprintf(edu, sizeof(edu), "edu,%s,0,0,%lu,1,registers", edu_bdf, page);
	snprintf(memory, sizeof(memory), "memory,%s,2,%lu,%lu,2,memory",
		 ivshmem_bdf, 4 * page, 4 * page);
	snprintf(buffer, sizeof(buffer), "buffer,%s,2,%lu,%lu,1,buffer",
		 ivshmem_bdf, 16 * page, 16 * page);
}

int lend_demo(int argc, char **argv)
{
	start = now_ms();
	find_devices(argc, argv);
	if (!mkdtemp(dir))
		die("FAIL: mkdtemp %s: %s", dir, strerror(errno));
	/* For the clients, and for no other user: mkdtemp() has made it 0700 */
	if (!geteuid() && chown(dir, NOBODY, -1))
		fail("chown %s: %s", dir, strerror(errno));
	snprintf(socket_path, sizeof(socket_path), "%s/socket", dir);

	step("An owner opens edu and ivshmem");
	start_owner();
	many_at_once();
	write_combining();
	beyond_slice();
	revoke_by_client();
	hung_client();
	killed_client();
	full_queue();
	nonsense();
	owner_ends();
	owner_dies();

	end_all();
	printf("\n");
	fflush(stdout);
	say("PASS");
	return EXIT_SUCCESS;
}
