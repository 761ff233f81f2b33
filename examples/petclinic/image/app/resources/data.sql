insert into types values (1, 'cat'), (2, 'dog'), (3, 'hamster'), (4, 'lizard'), (5, 'parrot'), (6, 'tortoise');

insert into vets values
    (1, 'Agnes', 'Moreau'), (2, 'Tomasz', 'Zielinski'), (3, 'Leila', 'Haddad'), (4, 'Bjarne', 'Solberg');

insert into vet_specialties values
    (1, 'dentistry'), (1, 'surgery'), (2, 'radiology'), (3, 'reptiles'), (3, 'surgery');

insert into owners (id, first_name, last_name, address, city, telephone) values
    (1, 'Ida', 'Albrecht', '4 Mill Lane', 'Oldbridge', '5550142'),
    (2, 'Marcus', 'Bell', '29 Harbour Street', 'Seaford', '5550177'),
    (3, 'Chiara', 'Conti', '7 Orchard Road', 'Oldbridge', '5550108'),
    (4, 'Samuel', 'Dorsey', '112 North Avenue', 'Fenwick', '5550163'),
    (5, 'Yuki', 'Endo', '3 Station Square', 'Seaford', '5550119'),
    (6, 'Farah', 'Faruqi', '58 Hill Rise', 'Fenwick', '5550184'),
    (7, 'Greta', 'Lindqvist', '16 Meadow Way', 'Oldbridge', '5550135'),
    (8, 'Owen', 'Price', '81 Castle Street', 'Seaford', '5550150');

insert into pets (id, name, birth_date, type_id, owner_id) values
    (1, 'Biscuit', date '2018-04-11', 2, 1),
    (2, 'Minka', date '2020-09-07', 1, 2),
    (3, 'Pixel', date '2021-01-20', 1, 2),
    (4, 'Ruggero', date '2015-06-02', 2, 3),
    (5, 'Echo', date '2012-11-30', 5, 4),
    (6, 'Momo', date '2023-02-14', 3, 5),
    (7, 'Sheldon', date '1998-07-01', 6, 6),
    (8, 'Ziggy', date '2022-08-19', 4, 6),
    (9, 'Freja', date '2019-03-25', 2, 7),
    (10, 'Tegan', date '2017-12-05', 1, 8),
    (11, 'Bramble', date '2024-05-09', 3, 8);

insert into visits (id, pet_id, visit_date, description) values
    (1, 1, date '2024-03-04', 'rabies vaccination'),
    (2, 1, date '2025-03-10', 'rabies vaccination, teeth cleaned'),
    (3, 4, date '2024-11-22', 'stiff left hind leg, rest for two weeks'),
    (4, 7, date '2025-04-01', 'awake from hibernation, in good health'),
    (5, 9, date '2025-01-15', 'neutered'),
    (6, 10, date '2024-07-30', 'ate a rubber band');
