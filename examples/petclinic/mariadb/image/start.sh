#!/bin/sh
# A database for one application: DATABASE, with a user of the same name and PASSWORD, in /data.
set -eu
if [ ! -d /data/mysql ]; then
    mariadb-install-db --no-defaults --user=mysql --datadir=/data --skip-test-db >/dev/null
fi
umask 077
cat > /tmp/init.sql <<SQL
create database if not exists $DATABASE;
create user if not exists $DATABASE@'%' identified by '$PASSWORD';
grant all on $DATABASE.* to $DATABASE@'%';
SQL
chown mysql /tmp/init.sql /data
exec mariadbd --no-defaults --user=mysql --datadir=/data --socket=/tmp/mariadbd.sock --bind-address=0.0.0.0 \
    --skip-name-resolve --init-file=/tmp/init.sql
