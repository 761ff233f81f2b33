/* The only program in the test containers: does what its first argument says. Static, no libc surprises. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void term(int signal) { (void)signal; puts("term"); fflush(stdout); _exit(7); }

static void print_file(const char *path) {
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) { printf("%s: %s\n", path, strerror(errno)); return; }
    ssize_t n;
    while ((n = read(fd, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, n, stdout);
    close(fd);
}

static void result(const char *what, int r) { printf("%s %s\n", what, r < 0 ? strerror(errno) : "ok"); }

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "true";
    const char *arg = argc > 2 ? argv[2] : "";
    if (!strcmp(verb, "true")) return 0;
    if (!strcmp(verb, "exit")) return atoi(arg);
    if (!strcmp(verb, "echo")) { printf("%s\n", arg); fprintf(stderr, "err %s\n", arg); return 0; }
    if (!strcmp(verb, "partial")) { printf("no newline"); return 0; }
    if (!strcmp(verb, "lines")) { for (int i = 0; i < atoi(arg); i++) printf("line %d\n", i); return 0; }
    if (!strcmp(verb, "sleep")) { signal(SIGTERM, term); puts("ready"); fflush(stdout); for (;;) pause(); }
    if (!strcmp(verb, "stubborn")) { puts("ready"); fflush(stdout); for (;;) pause(); }
    if (!strcmp(verb, "kill")) { signal(atoi(arg), SIG_DFL); kill(getpid(), atoi(arg)); abort(); }
    if (!strcmp(verb, "fork")) { if (fork() == 0) { for (;;) pause(); } for (;;) pause(); }
    if (!strcmp(verb, "cat")) {
        char buffer[4096]; ssize_t n;
        while ((n = read(0, buffer, sizeof buffer)) > 0) if (write(1, buffer, n) != n) return 1;
        return 0;
    }
    if (!strcmp(verb, "eat")) {
        /* In a child, so that the container's first process sees the kill or is killed itself. */
        for (size_t total = 0;; total += 1 << 20) { char *p = malloc(1 << 20); if (!p) return 3; memset(p, 1, 1 << 20); }
    }
    if (!strcmp(verb, "message")) {
        int fd = open(arg, O_WRONLY | O_CREAT, 0644);
        if (fd < 0) { perror(arg); return 9; }
        dprintf(fd, "last words"); puts("in the log"); return 3;
    }
    if (!strcmp(verb, "size")) {
        struct winsize w = {0};
        ioctl(0, TIOCGWINSZ, &w);
        printf("tty %d\n", isatty(0));
        fflush(stdout);
        char c; while (read(0, &c, 1) == 1 && c != '\n') {}
        ioctl(0, TIOCGWINSZ, &w);
        printf("size %d %d\n", w.ws_col, w.ws_row);
        return 0;
    }
    if (!strcmp(verb, "file")) { print_file(arg); return 0; }
    if (!strcmp(verb, "probe")) {
        printf("uid %d gid %d pid %d\n", getuid(), getgid(), getpid());
        gid_t groups[16]; int n = getgroups(16, groups);
        printf("groups"); for (int i = 0; i < n; i++) printf(" %d", groups[i]); puts("");
        char cwd[256]; printf("cwd %s\n", getcwd(cwd, sizeof cwd));
        printf("home %s path %s\n", getenv("HOME"), getenv("PATH"));
        char host[64]; gethostname(host, sizeof host); printf("host %s\n", host);
        char line[256]; FILE *f = fopen("/proc/self/status", "r");
        while (f && fgets(line, sizeof line, f))
            if (!strncmp(line, "CapEff", 6) || !strncmp(line, "CapBnd", 6) || !strncmp(line, "Seccomp:", 8) ||
                !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "SigBlk", 6) || !strncmp(line, "SigIgn", 6)) fputs(line, stdout);
        result("mount", mount("none", "/tmp", "tmpfs", 0, ""));
        result("unshare", unshare(CLONE_NEWUSER));
        result("write-root", open("/new", O_CREAT | O_WRONLY, 0644));
        result("write-sysctl", open("/proc/sys/kernel/hostname", O_WRONLY));
        struct stat s = {0}; result("timers", stat("/proc/timer_list", &s)); printf("masked %d %d\n", major(s.st_rdev), minor(s.st_rdev));
        mknod("/dev/mem2", S_IFCHR | 0600, makedev(1, 1));
        result("mem", open("/dev/mem2", O_RDONLY));
        result("null", open("/dev/null", O_RDWR));
        result("shm", open("/dev/shm/x", O_CREAT | O_RDWR, 0600));
        result("sys", open("/sys/kernel/uevent_helper", O_WRONLY));
        for (int fd = 3; fd < 64; fd++) { char p[64], t[256]; snprintf(p, 64, "/proc/self/fd/%d", fd); ssize_t k = readlink(p, t, 255);
            if (k > 0) { t[k] = 0; if (t[0] == 's' || t[0] == 'p') printf("leak %d %s\n", fd, t); } }
        return 0;
    }
    fprintf(stderr, "unknown verb %s\n", verb);
    return 99;
}
