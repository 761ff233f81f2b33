/* The barest machine that answers over HTTP: the first process of a virtual machine, static, without a shell. It loads
 * what the network needs, takes its address from the kernel's parameters (address=A.B.C.D), says on its console that
 * it listens, and answers every request with 200. A request for /flood is answered after FLOOD bytes were written to
 * the virtio-serial port, as the agent writes there: in pieces of 32 KiB. For benchmarks only. */
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
#include <unistd.h>

#define FLOOD (128L << 20)
#define PIECE (32 * 1024)

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

int main(void)
{
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, "");
    mount("dev", "/dev", "devtmpfs", 0, "");
    modules("/modules/net");
    network();
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
