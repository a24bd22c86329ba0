// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the guest in the guest: uses the devices that QEMU has handed on with
 * vfio-pci. Prints "second: ok ..." per check and "second: run N ok" at the end, and
 * resets the machine, or powers it off after the last run. The memory of ivshmem
 * survives and counts the runs.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>

#define MiB (1UL << 20)
/* QEMU 7.2's edu refuses the last byte of its 4 KiB */
#define DMA_SIZE 2048

struct device {
	char path[300];
	int config;
};

struct kept {
	uint64_t nonce;
	uint64_t run;
};

static __attribute__((noreturn)) void end(int how)
{
	fflush(stdout);
	sleep(1);
	reboot(how);
	for (;;)
		pause();
}

static void check(int good, const char *form, ...)
{
	va_list args;

	printf("second: %s ", good ? "ok" : "not ok");
	va_start(args, form);
	vprintf(form, args);
	va_end(args);
	printf("\n");
	if (!good)
		end(RB_POWER_OFF);
}

static uint64_t number(const char *dir, const char *file)
{
	char path[400], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		text[0] = 0;
	close(fd);
	return strtoull(text, NULL, 0);
}

/* Memory off or on, and DMA on */
static void memory(struct device *dev, int on)
{
	uint16_t command = on ? 0x6 : 0x4;

	check(pwrite(dev->config, &command, 2, 4) == 2, "%s: memory %s",
	      dev->path, on ? "on" : "off");
}

static void find(struct device *dev, unsigned int vendor, unsigned int device)
{
	DIR *dir = opendir("/sys/bus/pci/devices");
	struct dirent *entry;
	char path[400];

	while ((entry = readdir(dir))) {
		snprintf(dev->path, sizeof(dev->path), "/sys/bus/pci/devices/%s",
			 entry->d_name);
		if (number(dev->path, "vendor") != vendor ||
		    number(dev->path, "device") != device)
			continue;
		closedir(dir);
		snprintf(path, sizeof(path), "%s/config", dev->path);
		dev->config = open(path, O_RDWR);
		return;
	}
	check(0, "no device %x:%x", vendor, device);
}

static void *map(struct device *dev, int bar, size_t length)
{
	char path[400];
	void *at;
	int fd;

	snprintf(path, sizeof(path), "%s/resource%d", dev->path, bar);
	fd = open(path, O_RDWR);
	at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	check(at != MAP_FAILED, "%s mapped", path);
	return at;
}

/* The bus address of a BAR */
static uint64_t address(struct device *dev, int bar)
{
	char path[400], line[100];
	uint64_t start = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/resource", dev->path);
	file = fopen(path, "r");
	while (bar-- >= 0 && fgets(line, sizeof(line), file))
		start = strtoull(line, NULL, 0);
	fclose(file);
	return start;
}

static uint64_t value(uint64_t seed, uint64_t nr)
{
	return ((seed << 24) + nr) * 0x9e3779b97f4a7c15ULL;
}

static void put(volatile uint64_t *at, size_t length, uint64_t seed)
{
	size_t i;

	for (i = 0; i < length / 8; i++)
		at[i] = value(seed, i);
}

static size_t wrong(volatile uint64_t *at, size_t length, uint64_t seed)
{
	size_t i, bad = 0;

	for (i = 0; i < length / 8; i++)
		bad += at[i] != value(seed, i);
	return bad;
}

static void edu_factorial(volatile uint32_t *regs)
{
	int tries = 10000;

	regs[0x08 / 4] = 10;
	while ((regs[0x20 / 4] & 1) && --tries)
		usleep(1000);
	check(regs[0x08 / 4] == 3628800, "edu: 10! = %u", regs[0x08 / 4]);
}

static void edu_dma(volatile uint32_t *regs, uint64_t from, uint64_t to, int write)
{
	volatile uint64_t *wide = (void *)regs;
	int tries = 10000;

	wide[0x80 / 8] = from;
	wide[0x88 / 8] = to;
	wide[0x90 / 8] = DMA_SIZE;
	wide[0x98 / 8] = write ? 3 : 1;
	while ((wide[0x98 / 8] & 1) && --tries)
		usleep(1000);
	check(tries > 0, "edu: DMA of 0x%llx to 0x%llx", (long long)from, (long long)to);
}

/* edu reads one page of a BAR of another device and writes another one */
static void peer_to_peer(const char *when, volatile uint32_t *regs, void *at,
			 uint64_t bus, uint64_t seed)
{
	put(at, DMA_SIZE, seed);
	put(at + 4096, DMA_SIZE, seed + 1000000);
	edu_dma(regs, bus, 0x40000, 0);
	edu_dma(regs, 0x40000, bus + 4096, 1);
	check(!wrong(at + 4096, DMA_SIZE, seed), "peer-to-peer %s", when);
}

/* Blocks of an earlier run are still there, those of this one come back the same */
static void nvme_blocks(uint64_t nonce, uint64_t run)
{
	enum { SIZE = 65536, BLOCKS = 64 };
	int fd, i, tries = 600;
	uint64_t *block;

	while ((fd = open("/dev/nvme0n1", O_RDWR | O_DIRECT)) < 0 && --tries)
		usleep(100000);
	check(fd >= 0, "nvme: opened");
	block = aligned_alloc(4096, SIZE);
	for (i = 0; run > 1 && i < BLOCKS; i++)
		if (pread(fd, block, SIZE, (off_t)i * SIZE) != SIZE ||
		    wrong(block, SIZE, nonce + (run - 1) * BLOCKS + i))
			check(0, "nvme: block %d of the run before", i);
	for (i = 0; i < BLOCKS; i++) {
		put(block, SIZE, nonce + run * BLOCKS + i);
		if (pwrite(fd, block, SIZE, (off_t)i * SIZE) != SIZE)
			check(0, "nvme: block %d not written", i);
	}
	fsync(fd);
	for (i = 0; i < BLOCKS; i++) {
		memset(block, 0, SIZE);
		if (pread(fd, block, SIZE, (off_t)i * SIZE) != SIZE ||
		    wrong(block, SIZE, nonce + run * BLOCKS + i))
			check(0, "nvme: block %d", i);
	}
	check(1, "nvme: %d blocks of %d KiB", BLOCKS, SIZE / 1024);
	close(fd);
}

/* By the driver of the drive, which then starts it again */
static void function_reset(struct device *dev)
{
	char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/reset_method", dev->path);
	fd = open(path, O_WRONLY);
	check(write(fd, "flr", 3) == 3, "%s can do an FLR", dev->path);
	close(fd);
	snprintf(path, sizeof(path), "%s/reset", dev->path);
	fd = open(path, O_WRONLY);
	check(write(fd, "1", 1) == 1, "FLR of %s", dev->path);
	close(fd);
	sleep(2);
}

static int argument(const char *what, char *text, size_t size)
{
	char line[1024] = "", *at;
	int fd = open("/proc/cmdline", O_RDONLY);

	if (read(fd, line, sizeof(line) - 1) <= 0)
		return 0;
	close(fd);
	at = strstr(line, what);
	return at && snprintf(text, size, "%.*s", (int)strcspn(at + strlen(what), " \n"),
			      at + strlen(what)) > 0;
}

int main(void)
{
	struct device edu, ivshmem, nvme;
	volatile struct kept *kept;
	volatile uint32_t *regs;
	uint64_t nonce, run, bar;
	char text[64], mode[64];
	void *shared, *cmb;

	mount("none", "/proc", "proc", 0, NULL);
	mount("none", "/sys", "sysfs", 0, NULL);
	mount("none", "/dev", "devtmpfs", 0, NULL);
	setvbuf(stdout, NULL, _IONBF, 0);
	if (!argument("nonce=", text, sizeof(text)) ||
	    !argument("mode=", mode, sizeof(mode)))
		check(0, "arguments");
	nonce = strtoull(text, NULL, 0) * 1000;

	find(&edu, 0x1234, 0x11e8);
	find(&ivshmem, 0x1af4, 0x1110);
	find(&nvme, 0x1b36, 0x0010);
	memory(&edu, 1);
	memory(&ivshmem, 1);
	regs = map(&edu, 0, MiB);
	shared = map(&ivshmem, 2, 128 * MiB);
	bar = address(&ivshmem, 2);
	kept = shared;
	if (kept->nonce != nonce)
		kept->run = 0;
	kept->nonce = nonce;
	run = ++kept->run;

	edu_factorial(regs);
	if (run > 1)
		check(!wrong(shared + MiB, 64 * MiB, nonce + run - 1),
		      "ivshmem: 64 MiB of the run before");
	put(shared + MiB, 64 * MiB, nonce + run);
	check(!wrong(shared + MiB, 64 * MiB, nonce + run), "ivshmem: 64 MiB");
	nvme_blocks(nonce, run);

	if (!strcmp(mode, "basic")) {
		printf("second: run %d ok\n", (int)run);
		end(run == 1 ? RB_AUTOBOOT : RB_POWER_OFF);
	}

	peer_to_peer("with ivshmem", regs, shared + 100 * MiB, bar + 100 * MiB, 1);
	memory(&ivshmem, 0);
	memory(&ivshmem, 1);
	peer_to_peer("after memory of ivshmem off and on", regs,
		     shared + 100 * MiB, bar + 100 * MiB, 2);
	/* Its driver has queues at the beginning */
	cmb = map(&nvme, 2, 16 * MiB) + 15 * MiB;
	bar = address(&nvme, 2) + 15 * MiB;
	peer_to_peer("with nvme", regs, cmb, bar, 3);
	if (!strcmp(mode, "p2p-flr")) {
		function_reset(&nvme);
		peer_to_peer("with nvme after FLR", regs, cmb, bar, 4);
		nvme_blocks(nonce, run + 1);
	}
	printf("second: run %d ok\n", (int)run);
	end(RB_POWER_OFF);
}
