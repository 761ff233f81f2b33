-- The same as schema.sql for MariaDB.
create table owners (
    id int auto_increment primary key,
    first_name varchar(30) not null,
    last_name varchar(30) not null,
    address varchar(255) not null,
    city varchar(30) not null,
    telephone varchar(16) not null
) auto_increment = 100;
create index owners_by_name on owners (last_name);

create table types (
    id int primary key,
    name varchar(30) not null
);

create table pets (
    id int auto_increment primary key,
    name varchar(30) not null,
    birth_date date not null,
    type_id int not null references types (id),
    owner_id int not null references owners (id)
) auto_increment = 100;

create table visits (
    id int auto_increment primary key,
    pet_id int not null references pets (id),
    visit_date date not null,
    description varchar(255) not null
) auto_increment = 100;

create table vets (
    id int primary key,
    first_name varchar(30) not null,
    last_name varchar(30) not null
);

create table vet_specialties (
    vet_id int not null references vets (id),
    name varchar(30) not null,
    primary key (vet_id, name)
);
