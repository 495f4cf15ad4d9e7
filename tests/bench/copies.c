// SPDX-License-Identifier: BSD-3-Clause
// Counts what a process copies by the functions of the C library, in calls of LEAST bytes or more.
// To be loaded by LD_PRELOAD; the file $VOF_COPIES holds two counts of bytes: of calls whose source
// has something in it, and of those whose source is zeroes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LEAST = 512 };

static unsigned long unseen[2], *count = unseen;

static void *plain(void *to, const void *from, size_t size)
{
    char *out = to;
    const char *in = from;
    if (out <= in)
        for (size_t at = 0; at < size; at++)
            out[at] = in[at];
    else
        while (size--)
            out[size] = in[size];
    return to;
}

static void *(*move)(void *, const void *, size_t) = plain;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("VOF_COPIES");
    int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    move = dlsym(RTLD_NEXT, "memmove");
    if (fd < 0 || ftruncate(fd, sizeof unseen))
        return;
    void *shared = mmap(NULL, sizeof unseen, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED)
        count = shared;
    close(fd);
}

static void *copy(void *to, const void *from, size_t size)
{
    const char *in = from;
    size_t at = 0;
    if (size >= LEAST) {
        while (at < size && !in[at])
            at++;
        __atomic_fetch_add(&count[at == size], size, __ATOMIC_RELAXED);
    }
    return move(to, from, size);
}

void *memcpy(void *to, const void *from, size_t size) { return copy(to, from, size); }
void *memmove(void *to, const void *from, size_t size) { return copy(to, from, size); }
void *mempcpy(void *to, const void *from, size_t size) { return (char *)copy(to, from, size) + size; }
void *__memcpy_chk(void *to, const void *from, size_t size, size_t room) { return copy(to, from, size); }
void *__memmove_chk(void *to, const void *from, size_t size, size_t room) { return copy(to, from, size); }
