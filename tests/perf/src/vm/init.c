/* The barest machine that answers over HTTP: the first process of a virtual machine, static, without a shell. It loads
 * what the network needs, takes its address from the kernel's parameters (address=A.B.C.D), says on its console that
 * it listens, and answers every request with 200. A request for /flood is answered after FLOOD bytes were written to
 * the virtio-serial port, as the agent writes there: in pieces of 32 KiB.
 * With a file /program it answers nothing itself: it mounts the first disk (erofs) with memory above it, and starts there
 * what the file says, one word per line: d directory, u user id, g group id, a argument, e environment. For benchmarks only. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FLOOD (128L << 20)
#define PIECE (32 * 1024)
#define WORDS 64

/* Loads the modules that a list names, one path per line. */
static void modules(const char *list)
{
    char path[256];
    FILE *order = fopen(list, "r");
    while (order && fgets(path, sizeof path, order)) {
        path[strcspn(path, "\n")] = 0;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0) perror(path);
        close(fd);
    }
    if (order) fclose(order);
}

static void network(void)
{
    char line[4096] = "", *found;
    FILE *file = fopen("/proc/cmdline", "r");
    if (!file || !fgets(line, sizeof line, file) || !(found = strstr(line, "address="))) return;
    fclose(file);
    found += strlen("address=");
    found[strcspn(found, " \n")] = 0;
    struct ifreq request = { .ifr_name = "eth0" };
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = inet_addr(found);
    if (ioctl(fd, SIOCSIFADDR, &request) < 0) perror("address");
    address->sin_addr.s_addr = inet_addr("255.255.255.252");
    if (ioctl(fd, SIOCSIFNETMASK, &request) < 0) perror("netmask");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0) perror("up");
    close(fd);
}

static void flood(void)
{
    static char piece[PIECE];
    char path[300];
    struct dirent *entry;
    memset(piece, 'x', sizeof piece);
    modules("/modules/serial");
    DIR *dir = opendir("/dev");
    int port = -1;
    while (port < 0 && dir && (entry = readdir(dir)))
        if (!strncmp(entry->d_name, "vport", 5)) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            port = open(path, O_WRONLY);
        }
    for (long left = FLOOD; left > 0;) {
        ssize_t n = write(port, piece, sizeof piece);
        if (n <= 0) {
            perror("port");
            return;
        }
        left -= n;
    }
    close(port);
    closedir(dir);
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void loopback(void)
{
    struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0) perror("lo");
    close(fd);
}

/* The disk's files at /root, and what is written there in memory. */
static void root(void)
{
    static const char *const dirs[] = { "/disk", "/memory", "/root" };
    for (int i = 0; i < 3; i++) mkdir(dirs[i], 0755);
    if (mount("/dev/vda", "/disk", "erofs", MS_RDONLY, "") < 0) fail("disk");
    if (mount("tmpfs", "/memory", "tmpfs", 0, "mode=755") < 0) fail("memory");
    mkdir("/memory/upper", 0755);
    mkdir("/memory/work", 0755);
    if (mount("overlay", "/root", "overlay", 0, "lowerdir=/disk,upperdir=/memory/upper,workdir=/memory/work") < 0)
        fail("overlay");
    if (chroot("/root") < 0 || chdir("/") < 0) fail("root");
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    if (mount("proc", "/proc", "proc", 0, "") < 0) fail("proc");
    if (mount("sysfs", "/sys", "sysfs", 0, "") < 0) fail("sys");
    if (mount("dev", "/dev", "devtmpfs", 0, "") < 0) fail("dev");
}

/* Runs what the file says and ends, with the machine, when it ends. */
static int run(FILE *file)
{
    static char lines[WORDS][4096];
    char *arguments[WORDS + 1] = { 0 }, *environment[WORDS + 1] = { 0 }, *directory = "/";
    int words = 0, variables = 0, user = 0, group = 0;
    for (int n = 0; n < WORDS && fgets(lines[n], sizeof lines[n], file); n++) {
        char *word = lines[n] + 1;
        word[strcspn(word, "\n")] = 0;
        switch (lines[n][0]) {
        case 'a': arguments[words++] = word; break;
        case 'e': environment[variables++] = word; break;
        case 'd': directory = word; break;
        case 'u': user = atoi(word); break;
        case 'g': group = atoi(word); break;
        }
    }
    loopback();
    root();
    if (sethostname("clinic", 6) < 0) perror("hostname");
    pid_t child = fork();
    if (child == 0) {
        if (chdir(directory) < 0 || setgid(group) < 0 || setuid(user) < 0) fail("user");
        execve(arguments[0], arguments, environment);
        fail(arguments[0]);
    }
    for (pid_t ended = 0; ended != child;) ended = wait(NULL);
    return 1;
}

int main(void)
{
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, "");
    mount("dev", "/dev", "devtmpfs", 0, "");
    modules("/modules/net");
    network();
    FILE *program = fopen("/program", "r");
    if (program) return run(program);
    struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(8080) };
    int server = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(server, (struct sockaddr *)&any, sizeof any) < 0 || listen(server, 64) < 0) perror("listen");
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
        char request[2048];
        int client = accept(server, NULL, NULL);
        if (read(client, request, sizeof request) > 0) {
            if (!strncmp(request, "GET /flood ", 11)) flood();
            if (write(client, answer, sizeof answer - 1) < 0) perror("answer");
        }
        close(client);
    }
}
