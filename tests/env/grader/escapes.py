# ruff: noqa: E501
"""Attempts to leave the sandbox: code that raises where it is stopped and falls through where it succeeds.

Each runs inside a method that returns "blocked" if the code raised and "escaped" if it did not. `{secret}`,
`{folder}`, `{port}` and `{name}` are filled in by the test with a readable file outside, a writable folder outside,
a listening TCP port and an abstract socket's name.
"""

ESCAPES: dict[str, str] = {
    "tcp_loopback": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).send(b'x')",
    "tcp_outside": "import socket\nsocket.create_connection(('1.1.1.1', 53), 2)",
    "tcp_ipv6": "import socket\nsocket.socket(socket.AF_INET6).connect(('::1', {port}))",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
    "dns": "import socket\nsocket.gethostbyname('localhost')",
    "listen": "import socket\nsocket.create_server(('127.0.0.1', 0))",
    "abstract_socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{name}')",
    "pair_to_abstract_socket": (
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '\\0{name}')"
    ),
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "raw_socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "url": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}', timeout=2)",
    "read_secret": "open('{secret}').read()",
    "read_secret_by_link": "import os\nos.symlink('{secret}', 'link')\nopen('link').read()",
    "read_ssh": "import os\nos.listdir(os.path.expanduser('~root/.ssh'))",
    "read_parent": "import os\nassert os.listdir('..')",
    "read_home": "import os\nassert os.listdir('/root') or os.listdir('/home')",
    "read_passwd": "open('/etc/passwd').read()",
    "read_project": "open('{project}/vgrout_jax/config/schema.py').read()",
    "read_tests": "open('{project}/tests/env/grader/support.py').read()",
    "read_grader": "open('/grader/worker/server.py').read()",
    "write_outside": "open('{folder}/escaped', 'w').write('x')",
    "write_tmp": "open('/tmp/../var/tmp/escaped', 'w')",
    "write_root": "open('/escaped', 'w')",
    "write_grader": "open('{project}/vgrout_jax/env/grader/__init__.py', 'a')",
    "write_interpreter": "import os\nopen(os.__file__, 'a')",
    "write_device": "open('/dev/sda', 'wb')",
    "write_shared_memory_file": "open('/dev/shm/escaped', 'w')",
    "symlink": "import os\nos.symlink('/etc', 'etc')",
    "hard_link": "import os\nopen('mine', 'w').close()\nos.link('mine', 'other')",
    "make_folder": "import os\nos.mkdir('folder')",
    "fifo": "import os\nos.mkfifo('pipe')",
    "device_node": "import os, stat\nos.mknod('node', stat.S_IFCHR | 0o666, os.makedev(1, 3))",
    "set_uid_bit": "import os\nopen('mine', 'w').close()\nos.chmod('mine', 0o4755)",
    "change_owner": "import os\nopen('mine', 'w').close()\nos.chown('mine', 0, 0)",
    "become_root": "import os\nos.setuid(0)",
    "become_root_group": "import os\nos.setgid(0)",
    "chroot": "import os\nos.chroot('.')",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'.', b'tmpfs', 0, None) == 0",
    "unmount": "import ctypes\nassert ctypes.CDLL(None).umount2(b'/proc', 2) == 0",
    "user_namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "enter_namespace": "import ctypes, os\nassert ctypes.CDLL(None).setns(os.open('/proc/1/ns/mnt', 0), 0) == 0",
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "fork_bomb": (
        "import os\nmade = 0\nfor _ in range(100):\n"
        "    try:\n        if os.fork() == 0:\n            import time\n            time.sleep(60)\n        made += 1\n"
        "    except OSError:\n        pass\nassert made"
    ),
    "vfork_shell": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "system": "import os\nassert os.system('true') == 0",
    "spawn": "import os\nassert os.posix_spawn('/bin/true', ['true'], {{}})",
    "exec": "import os\nos.execv('/python/bin/python3', ['python3', '-c', ''])",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)"
    ),
    "eight_gibibytes": "data = bytearray(8 << 30)",
    "many_allocations": "data = []\nwhile True:\n    data.append(bytearray(1 << 20))",
    "map_memory": "import mmap\nmmap.mmap(-1, 8 << 30)",
    "sparse_file": "import os\nwith open('big', 'wb') as f:\n    f.truncate(1 << 40)",
    "sparse_file_by_seek": "with open('big', 'wb') as f:\n    f.seek(1 << 40)\n    f.write(b'x')",
    "large_file": "with open('big', 'wb') as f:\n    for _ in range(64):\n        f.write(bytes(1 << 20))",
    "many_open_files": "files = [open('/dev/null') for _ in range(500)]",
    "many_threads": (
        "import threading, time\nthreading.stack_size(1 << 16)\n"
        "for _ in range(2000):\n    threading.Thread(target=time.sleep, args=(20,), daemon=True).start()"
    ),
    "ptrace": "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "ptrace_init": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "read_parent_memory": (
        "import ctypes, os, struct\nb = ctypes.create_string_buffer(8)\n"
        "v = struct.pack('QQ', ctypes.addressof(b), 8)\n"
        "r = struct.pack('QQ', ctypes.addressof(b), 8)\n"
        "assert ctypes.CDLL(None).process_vm_readv(os.getppid(), v, 1, r, 1, 0) > 0"
    ),
    "proc_init": "open('/proc/1/environ', 'rb').read()",
    "proc_parent": "import os\nopen(f'/proc/{{os.getppid()}}/environ', 'rb').read()",
    "proc_parent_files": "import os\nassert os.listdir(f'/proc/{{os.getppid()}}/fd')",
    "proc_root": "import os\nassert os.listdir('/proc/1/root')",
    "proc_self": "open('/proc/self/mem', 'rb')",
    "kernel_settings": "open('/proc/sys/kernel/hostname', 'w').write('x')",
    "kernel_log": "open('/dev/kmsg').read()",
    "kill_parent": "import os\nos.kill(os.getppid(), 9)",
    "kill_init": "import os\nos.kill(1, 9)",
    "kill_all": "import os\nos.kill(-1, 9)",
    "kill_trainer": "import os\nos.kill({trainer}, 9)",
    "signal_by_descriptor": (
        "import fcntl, os\na, b = os.pipe()\nfcntl.fcntl(a, fcntl.F_SETOWN, {trainer})\nfcntl.fcntl(a, fcntl.F_SETSIG, 9)"
    ),
    "pidfd": "import os\nos.pidfd_open({trainer})",
    "raise_limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "priority": "import os\nos.nice(-5)",
    "affinity": "import os\nos.sched_setaffinity(0, {{0}})",
    "keyring": "import ctypes\nassert ctypes.CDLL(None).syscall(250, 0, -3, 1) >= 0",
    "add_key": "import ctypes\nassert ctypes.CDLL(None).syscall(248, b'user', b'k', b'v', 1, -3) >= 0",
    "shared_memory": "from multiprocessing import shared_memory\nshared_memory.SharedMemory('escape', True, 64)",
    "system_v_memory": "import ctypes\nassert ctypes.CDLL(None).shmget(4711, 64, 0o1666) >= 0",
    "system_v_queue": "import ctypes\nassert ctypes.CDLL(None).msgget(4711, 0o1666) >= 0",
    "posix_queue": "import ctypes\nassert ctypes.CDLL(None).mq_open(b'/escape', 0o102, 0o666, None) >= 0",
    "memory_file": "import os\nos.memfd_create('x')",
    "io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120)) >= 0",
    "bpf": "import ctypes\nassert ctypes.CDLL(None).syscall(321, 0, ctypes.create_string_buffer(120), 120) >= 0",
    "perf": "import ctypes\nassert ctypes.CDLL(None).syscall(298, ctypes.create_string_buffer(120), 0, -1, -1, 0) >= 0",
    "userfaultfd": "import ctypes\nassert ctypes.CDLL(None).syscall(323, 0) >= 0",
    "weaken_landlock": "import ctypes\nassert ctypes.CDLL(None).syscall(444, None, 0, 1) > 0",
    "survive_the_parent": "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "become_dumpable": "import ctypes\nassert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0",
    "reboot": "import ctypes\nassert ctypes.CDLL(None).reboot(0x89ABCDEF) == 0",
    "load_module": "import ctypes\nassert ctypes.CDLL(None).syscall(175, b'', 0, b'') == 0",
    "terminal_input": "import fcntl\nfcntl.ioctl(0, 0x5412, b'x')",
    "old_abi": (
        "import ctypes, mmap\ncode = mmap.mmap(-1, 4096, prot=7)\n"
        # mov eax, 20 (getpid in 32-bit numbers); int 0x80; ret
        "code.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()"
    ),
}


def answer(code: str) -> str:
    """The whole answer around one attempt."""
    body = "\n".join("            " + line for line in code.splitlines())
    return (
        "class Solution:\n    def solve(self):\n        try:\n"
        f"{body}\n"
        "        except BaseException as error:\n            return 'blocked'\n        return 'escaped'\n"
    )
